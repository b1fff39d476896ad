// Package durable has what makes the names of files survive a crash, for the files that commands write for people: exports, certificates, archives,
// backups. What nodes keep goes through package vfs.
//
// It imports the standard library.
package durable

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// Replace renames a file, which the caller has synced, and syncs the directory of its new name: if it can be, which a directory that may be written to but
// not read, and some file systems, do not allow. A file that had this name is replaced.
func Replace(oldName, newName string) error {
	if err := os.Rename(oldName, newName); err != nil {
		return err
	}
	err := SyncDir(filepath.Dir(newName))
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}

// SyncDir makes the entries of a directory durable.
func SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
