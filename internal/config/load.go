package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"github.com/kiloraft/kiloraft/internal/fault"
)

// AddClientFlags adds the flags of commands that talk to a cluster.
func AddClientFlags(fs *pflag.FlagSet) { addFlags(fs, scopeClient) }

// AddNodeFlags adds the flags of serve.
func AddNodeFlags(fs *pflag.FlagSet) {
	addFlags(fs, scopeNode)
}

// AddFileFlag adds --config.
func AddFileFlag(fs *pflag.FlagSet) {
	fs.String("config", "", "read settings from this YAML or TOML file ($KILORAFT_CONFIG)")
}

func addFlags(fs *pflag.FlagSet, sc scope) {
	for _, s := range settings {
		if s.scope != sc {
			continue
		}
		name := FlagName(s.key)
		switch def := s.def.(type) {
		case string:
			fs.StringP(name, s.short, def, s.usage)
		case bool:
			fs.BoolP(name, s.short, def, s.usage)
		case int:
			fs.IntP(name, s.short, def, s.usage)
		case []string:
			fs.StringSliceP(name, s.short, def, s.usage)
		case time.Duration:
			fs.DurationP(name, s.short, def, s.usage)
		case ByteSize:
			fs.VarP(&def, name, s.short, s.usage)
		default:
			panic("config: setting " + s.key + " has a default of a type without a flag")
		}
	}
}

// Value is one setting as it is in force.
type Value struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Origin string `json:"origin"`
}

// Loaded is a configuration that knows where it came from.
type Loaded struct {
	Config
	Values  []Value  // every setting, by key
	Strange []string // KILORAFT_* variables that name no setting: not an error, orchestrators add such
}

// Load reads the configuration that flags (those of fs that are settings), environment and file give together.
func Load(fs *pflag.FlagSet, environ []string) (*Loaded, error) {
	env := environMap(environ)
	file, err := fileName(fs, env)
	if err != nil {
		return nil, err
	}
	v := viper.New()
	if file != "" {
		if err := readFile(v, file); err != nil {
			return nil, err
		}
	}
	l := &Loaded{Strange: strangeVariables(env)}
	for _, s := range settings {
		if err := bind(v, s, fs, env); err != nil {
			return nil, err
		}
		l.Values = append(l.Values, Value{Key: s.key, Origin: origin(v, s.key, fs, env, file)})
	}
	if err := v.UnmarshalExact(&l.Config, viper.DecodeHook(decodeHook)); err != nil {
		return nil, explain(err, l.Values)
	}
	for i := range l.Values {
		l.Values[i].Value = lookup(&l.Config, l.Values[i].Key)
	}
	sort.Slice(l.Values, func(i, j int) bool { return l.Values[i].Key < l.Values[j].Key })
	return l, nil
}

// Given tells whether key was set by anything but its default.
func (l *Loaded) Given(key string) bool {
	for _, v := range l.Values {
		if v.Key == key {
			return v.Origin != "default"
		}
	}
	return false
}

// Public returns the settings as JSON, with where each came from, and without secrets: what a debug bundle may hold.
func (l *Loaded) Public() []byte {
	list := slices.Clone(l.Values)
	for i := range list {
		if secret.MatchString(list[i].Key) && list[i].Value != "" {
			list[i].Value = "(secret)"
		}
	}
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return fmt.Appendf(nil, "%v", err)
	}
	return append(b, '\n')
}

// secret finds the keys of settings that are secrets, by the words that such keys have. Names of files are none.
var secret = regexp.MustCompile(`(^|[.-])(password|secret|token|passphrase|access-key|secret-key)s?$`)

func environMap(environ []string) map[string]string {
	m := make(map[string]string)
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(k, "KILORAFT_") && v != "" {
			m[k] = v
		}
	}
	return m
}

func fileName(fs *pflag.FlagSet, env map[string]string) (string, error) {
	file := env["KILORAFT_CONFIG"]
	if f := fs.Lookup("config"); f != nil && f.Changed {
		file = f.Value.String()
	}
	if file == "" {
		return "", nil
	}
	switch strings.ToLower(filepath.Ext(file)) {
	case ".yaml", ".yml", ".toml":
		return file, nil
	}
	return "", fmt.Errorf("config file %s: want a name that ends in .yaml, .yml or .toml", file)
}

// readFile reads the file and refuses keys that nobody knows. It runs before any default is set, so all keys that viper
// lists are the file's.
func readFile(v *viper.Viper, file string) error {
	v.SetConfigFile(file)
	if err := v.ReadInConfig(); err != nil {
		var parse viper.ConfigParseError
		if errors.As(err, &parse) {
			return fmt.Errorf("config file %s: %w", file, parse.Unwrap())
		}
		return fmt.Errorf("config file: %w", err)
	}
	var unknown []string
	for _, k := range v.AllKeys() {
		if !slices.ContainsFunc(settings, func(s setting) bool { return s.key == k }) {
			unknown = append(unknown, k)
		}
	}
	if len(unknown) > 0 {
		sort.Strings(unknown)
		return fmt.Errorf("config file %s: unknown keys: %s", file, strings.Join(unknown, ", "))
	}
	return nil
}

func bind(v *viper.Viper, s setting, fs *pflag.FlagSet, env map[string]string) error {
	switch def := s.def.(type) {
	case time.Duration:
		v.SetDefault(s.key, def.String())
	case ByteSize:
		v.SetDefault(s.key, def.String())
	default:
		v.SetDefault(s.key, def)
	}
	if f := fs.Lookup(FlagName(s.key)); f != nil && f.Changed {
		return v.BindPFlag(s.key, f)
	}
	if val, ok := env[EnvName(s.key)]; ok {
		v.Set(s.key, val) // the environment is passed in, so viper does not read it itself
	}
	return nil
}

func origin(v *viper.Viper, key string, fs *pflag.FlagSet, env map[string]string, file string) string {
	if f := fs.Lookup(FlagName(key)); f != nil && f.Changed {
		return "flag --" + f.Name
	}
	if _, ok := env[EnvName(key)]; ok {
		return "environment " + EnvName(key)
	}
	if v.InConfig(key) {
		return "file " + file
	}
	return "default"
}

func strangeVariables(env map[string]string) []string {
	known := map[string]bool{"KILORAFT_CONFIG": true, "KILORAFT_E2E": true, "KILORAFT_PASSWORD": true, fault.Env: true}
	for _, s := range settings {
		known[EnvName(s.key)] = true
	}
	var out []string
	for k := range env {
		if !known[k] {
			out = append(out, k)
		}
	}
	sort.Strings(out)
	return out
}

// decodeHook turns what flags, environment and files hold into the types of Config. A bare number is no duration: nobody
// who writes "timeout: 10" means nanoseconds.
func decodeHook(from, to reflect.Type, data any) (any, error) {
	s, isString := data.(string)
	switch to {
	case reflect.TypeFor[time.Duration]():
		if from == to {
			return data, nil
		}
		if !isString {
			return nil, fmt.Errorf("%v is no duration: write it with a unit, such as 10s or 100ms", data)
		}
		d, err := time.ParseDuration(s)
		if err != nil {
			return nil, fmt.Errorf("%q is no duration: write it with a unit, such as 10s or 100ms", s)
		}
		return d, nil
	case reflect.TypeFor[ByteSize]():
		if isString {
			return ParseByteSize(s)
		}
	case reflect.TypeFor[[]string]():
		if isString {
			return splitList(s), nil
		}
	}
	return data, nil
}

func splitList(s string) []string {
	out := []string{}
	for _, p := range strings.Split(s, ",") {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, p)
		}
	}
	return out
}

// explain makes an error of mapstructure readable, and says where the bad value came from.
func explain(err error, values []Value) error {
	msg := err.Error()
	var parts []string
	for _, v := range values {
		for _, line := range strings.Split(msg, "\n") {
			if strings.Contains(strings.ToLower(line), "'"+v.Key+"'") || strings.Contains(line, "'"+fieldPath(v.Key)+"'") {
				parts = append(parts, fmt.Sprintf("%s (%s): %s", v.Key, v.Origin, strings.TrimSpace(line)))
			}
		}
	}
	if len(parts) == 0 {
		return err
	}
	return errors.New(strings.Join(parts, "; "))
}

// fieldPath is how mapstructure names a key below a section in some versions: Raft.election-timeout.
func fieldPath(key string) string {
	section, rest, ok := strings.Cut(key, ".")
	if !ok {
		return key
	}
	return strings.ToUpper(section[:1]) + section[1:] + "." + rest
}

// lookup finds the value of key in the struct by its tags.
func lookup(c *Config, key string) any {
	v := reflect.ValueOf(c).Elem()
	for _, part := range strings.Split(key, ".") {
		found := false
		for i := range v.NumField() {
			if v.Type().Field(i).Tag.Get("mapstructure") == part {
				v, found = v.Field(i), true
				break
			}
		}
		if !found {
			panic("config: no field for " + key)
		}
	}
	switch x := v.Interface().(type) {
	case time.Duration:
		return x.String()
	case ByteSize:
		return x.String()
	case []string:
		if x == nil {
			return []string{}
		}
		return x
	default:
		return x
	}
}
