// Package config is what a kiloraft process can be told, and where each value came from: flag, then KILORAFT_* environment,
// then file (YAML or TOML), then default.
//
// Guarantees: a key that nobody knows is an error that names it, in files as well as on the command line; a value of the
// wrong form is an error that names the key and where the value came from; every setting has exactly one name, of which flag
// (dots become dashes) and environment variable (upper case, dots and dashes become underscores) follow.
//
// There is one viper instance per Load and no global state. Labels are a list of key=value, not a map: viper folds the case of map
// keys. It imports cobra's pflag, viper, and nothing of kiloraft.
package config
