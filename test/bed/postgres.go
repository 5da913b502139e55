package bed

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// postgresAccount is who runs PostgreSQL, which refuses to run as root.
func postgresAccount() string {
	if os.Geteuid() == 0 {
		return "postgres"
	}
	return ""
}

func credentialOf(account string) (*syscall.Credential, error) {
	found, err := user.Lookup(account)
	if err != nil {
		return nil, fmt.Errorf("finding user %s: %w", account, err)
	}
	uid, err := strconv.ParseUint(found.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("finding user %s: %w", account, err)
	}
	gid, err := strconv.ParseUint(found.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("finding user %s: %w", account, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// postgresProgram finds PostgreSQL's own programs; those in Debian's PATH are wrappers.
func postgresProgram(name string) (string, error) {
	return requirement{file: "/usr/lib/postgresql/*/bin/" + name}.find()
}

func (b *Bed) startPostgres(ctx context.Context) error {
	return b.progress.step("postgresql", func() (string, error) {
		port, err := b.freePort()
		if err != nil {
			return "", err
		}
		b.state.Postgres = PostgresState{
			Host: b.state.Host, Port: port, User: "postgres", Password: rand.Text(), Database: "app",
		}
		if err := b.initPostgres(ctx); err != nil {
			return "", err
		}
		binary, err := postgresProgram("postgres")
		if err != nil {
			return "", err
		}
		err = b.start(ctx, "postgres", &process{
			Account: postgresAccount(),
			Stop:    syscall.SIGINT, // ends sessions instead of waiting for them
			Args: []string{
				binary, "-D", b.path("postgres", "data"),
				"-h", b.state.Host, "-p", strconv.Itoa(port), "-k", "",
				"-c", "fsync=off", "-c", "log_connections=on",
			},
		})
		if err != nil {
			return "", err
		}
		if err := b.await(ctx, "postgres", b.postgresAnswers); err != nil {
			return "", err
		}
		_, err = b.sql(ctx, "postgres", "CREATE DATABASE app")
		return net.JoinHostPort(b.state.Host, strconv.Itoa(port)), err
	})
}

// initPostgres makes the data folder, with a password for the superuser and passwords asked of everybody.
func (b *Bed) initPostgres(ctx context.Context) error {
	initdb, err := postgresProgram("initdb")
	if err != nil {
		return err
	}
	dir := b.path("postgres")
	passwordFile := filepath.Join(dir, "password")
	if err := os.WriteFile(passwordFile, []byte(b.state.Postgres.Password), 0o600); err != nil {
		return fmt.Errorf("writing the database password: %w", err)
	}
	p := &process{
		Args: []string{
			initdb, "-D", filepath.Join(dir, "data"), "--username=" + b.state.Postgres.User, "--pwfile=" + passwordFile,
			"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
		},
		Account: postgresAccount(),
	}
	if p.Account != "" {
		credential, err := credentialOf(p.Account)
		if err != nil {
			return err
		}
		for _, path := range []string{dir, passwordFile} {
			if err := os.Chown(path, int(credential.Uid), int(credential.Gid)); err != nil {
				return fmt.Errorf("giving %s to PostgreSQL: %w", path, err)
			}
		}
	}
	var output bytes.Buffer
	cmd, err := b.command(p, &output)
	if err != nil {
		return err
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running initdb: %w\n%s", err, output.String())
	}
	// The server's access rules, for clients from pods too: a user, a password, no more.
	rules := "local all all scram-sha-256\nhost all all 0.0.0.0/0 scram-sha-256\n"
	if err := os.WriteFile(filepath.Join(dir, "data", "pg_hba.conf"), []byte(rules), 0o600); err != nil {
		return fmt.Errorf("writing PostgreSQL's access rules: %w", err)
	}
	return nil
}

func (b *Bed) postgresAnswers(ctx context.Context) error {
	_, err := b.sql(ctx, "postgres", "SELECT 1")
	return err
}

// sql runs one statement as the superuser and returns its rows, one per line.
func (b *Bed) sql(ctx context.Context, database, statement string) (string, error) {
	return b.psql(ctx, b.state.Postgres.User, b.state.Postgres.Password, database, statement)
}

func (b *Bed) psql(ctx context.Context, username, password, database, statement string) (string, error) {
	binary, err := postgresProgram("psql")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "--no-psqlrc", "--tuples-only", "--no-align", "--quiet",
		"--host", b.state.Postgres.Host, "--port", strconv.Itoa(b.state.Postgres.Port),
		"--username", username, "--dbname", database, "--command", statement)
	cmd.Env = []string{"PGPASSWORD=" + password, "HOME=" + b.state.Dir}
	cmd.Dir = "/"
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("running psql: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(output)), nil
}
