package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/escape"
)

func (a *app) userCmd() *cobra.Command {
	return group("user", "Users, their passwords and roles", a.userAddCmd(), a.userLsCmd(), a.userPasswdCmd(), a.userGrantCmd(), a.userRmCmd(), a.userWhoamiCmd())
}

// users runs one request about users.
func (a *app) users(cmd *cobra.Command, f func(context.Context, client.UserAdmin) error) error {
	return a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error {
		u, ok := c.(client.UserAdmin)
		if !ok {
			return errors.New("this cluster has no users")
		}
		return f(ctx, u)
	})
}

// roleFlags are --role and --prefix.
type roleFlags struct {
	role     string
	prefixes []string
}

func (r *roleFlags) add(cmd *cobra.Command, roles string) {
	cmd.Flags().StringVar(&r.role, "role", "", roles)
	cmd.Flags().StringArrayVar(&r.prefixes, "prefix", nil, "the role is for keys that begin so (may be repeated; default: all keys)")
}

func (r *roleFlags) grants() ([]client.Grant, error) {
	role, err := auth.ParseRole(r.role)
	if err != nil {
		return nil, usageError{err}
	}
	var list []client.Grant
	for _, p := range r.prefixes {
		b, err := boundArg(p)
		if err != nil {
			return nil, err
		}
		list = append(list, client.Grant{Role: role.String(), Prefix: b})
	}
	if list == nil {
		list = []client.Grant{{Role: role.String()}}
	}
	return list, nil
}

func (a *app) userAddCmd() *cobra.Command {
	var roles roleFlags
	var file string
	var noPassword bool
	cmd := &cobra.Command{
		Use: "add NAME --role read|write|admin", Args: cobra.ExactArgs(1), Short: "Add a user",
		Long: `Adds a user with a role: read, write (includes read) or admin (everything, and of the whole cluster), on all keys or with --prefix on those that
begin so. The password is asked for, or read from a file; a user without one comes in with a client certificate of that name.`,
		Example: "  kiloraft user add app --role write --prefix app/\n  kiloraft user add prometheus --role read --no-password",
		RunE: func(cmd *cobra.Command, args []string) error {
			grants, err := roles.grants()
			if err != nil {
				return err
			}
			if err := auth.CheckName(args[0]); err != nil {
				return usageError{err}
			}
			var password []byte
			if !noPassword {
				if password, err = a.newPassword(args[0], file); err != nil {
					return err
				}
			}
			return a.users(cmd, func(ctx context.Context, u client.UserAdmin) error { return u.AddUser(ctx, args[0], password, grants) })
		},
	}
	roles.add(cmd, "read, write or admin")
	passwordFlags(cmd, &file, &noPassword)
	_ = cmd.MarkFlagRequired("role")
	return cmd
}

func passwordFlags(cmd *cobra.Command, file *string, none *bool) {
	cmd.Flags().StringVar(file, "new-password-file", "", "read the new password from this file; - is stdin")
	cmd.Flags().BoolVar(none, "no-password", false, "no password: client certificates only")
}

func (a *app) userPasswdCmd() *cobra.Command {
	var file string
	var none bool
	cmd := &cobra.Command{
		Use: "passwd [NAME]", Args: cobra.MaximumNArgs(1), Short: "Change a password: your own, or as an administrator another's",
		Long: `Changes the password of a user, or without a name your own. Connections that came in with the old password lose all rights; new ones need the new
password. The user root has none at first, and can be given one.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, shown := "", "yourself"
			if len(args) == 1 {
				name, shown = args[0], args[0]
			}
			var password []byte
			var err error
			if !none {
				if password, err = a.newPassword(shown, file); err != nil {
					return err
				}
			} else if name == "" {
				return usagef("--no-password needs a name")
			}
			return a.users(cmd, func(ctx context.Context, u client.UserAdmin) error { return u.SetPassword(ctx, name, password) })
		},
	}
	passwordFlags(cmd, &file, &none)
	return cmd
}

func (a *app) userGrantCmd() *cobra.Command {
	var roles roleFlags
	cmd := &cobra.Command{
		Use: "grant NAME --role read|write|admin|none", Args: cobra.ExactArgs(1), Short: "Give a user a role, or take one away",
		Long: `Gives a user a role on all keys, or with --prefix on those that begin so, in the place of the role that the user had for that same prefix. The role
none takes it away. It holds for connections that exist, too.`,
		Example: "  kiloraft user grant app --role read --prefix shared/\n  kiloraft user grant app --role none --prefix app/",
		RunE: func(cmd *cobra.Command, args []string) error {
			grants, err := roles.grants()
			if err != nil {
				return err
			}
			return a.users(cmd, func(ctx context.Context, u client.UserAdmin) error { return u.Grant(ctx, args[0], grants) })
		},
	}
	roles.add(cmd, "read, write, admin or none")
	_ = cmd.MarkFlagRequired("role")
	return cmd
}

func (a *app) userRmCmd() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Args: cobra.ExactArgs(1), Short: "Remove a user; of root, the password",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.users(cmd, func(ctx context.Context, u client.UserAdmin) error { return u.RemoveUser(ctx, args[0]) })
		},
	}
}

// userJSON is a user as scripts see it.
type userJSON struct {
	Name     string     `json:"name"`
	Password bool       `json:"password"`
	Roles    []roleJSON `json:"roles"`
	Created  string     `json:"created,omitempty"`
	Updated  string     `json:"updated,omitempty"`
}

type roleJSON struct {
	Role   string `json:"role"`
	Prefix string `json:"prefix"`
}

func toUserJSON(u client.User) userJSON {
	out := userJSON{Name: u.Name, Password: u.Password, Roles: []roleJSON{}, Created: unixMS(u.Created), Updated: unixMS(u.Updated)}
	for _, g := range u.Grants {
		out.Roles = append(out.Roles, roleJSON{g.Role, escape.String(g.Prefix)})
	}
	return out
}

func unixMS(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).UTC().Format(time.RFC3339)
}

func (u *userJSON) roles() string {
	var list []string
	for _, r := range u.Roles {
		if r.Prefix == "" {
			list = append(list, r.Role)
		} else {
			list = append(list, r.Role+":"+r.Prefix)
		}
	}
	if list == nil {
		return "none"
	}
	return strings.Join(list, ", ")
}

func (a *app) userLsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Args: cobra.NoArgs, Short: "List the users",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.users(cmd, func(ctx context.Context, u client.UserAdmin) error {
				list, err := u.Users(ctx)
				if err != nil {
					return err
				}
				out := make([]userJSON, len(list))
				for i := range list {
					out[i] = toUserJSON(list[i])
				}
				return a.emit(out, func(w io.Writer) error {
					var rows [][]string
					for i := range out {
						by := "certificate"
						if out[i].Password {
							by = "password or certificate"
						}
						rows = append(rows, []string{out[i].Name, by, out[i].Updated, out[i].roles()})
					}
					return table(w, "NAME BY CHANGED ROLES", rows)
				})
			})
		},
	}
}

func (a *app) userWhoamiCmd() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Args: cobra.NoArgs, Short: "Show who the cluster thinks you are",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.users(cmd, func(ctx context.Context, u client.UserAdmin) error {
				me, err := u.WhoAmI(ctx)
				if err != nil {
					return err
				}
				out := toUserJSON(me)
				return a.emit(out, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "%s: %s\n", out.Name, out.roles())
					return err
				})
			})
		},
	}
}
