package spec

import (
	"errors"
	"net/url"
	"path"
	"strings"
)

var errAddress = errors.New("it must be http:// or https:// with a host, or unix:// with the absolute path of a socket, and hold no user, query or fragment")

// ParseAddress returns what an operator names as Vault's address in the form of Server.Address. Besides what a class may name, that
// is a path below which a proxy serves Vault, or unix:///path/of/a/socket. The error does not repeat the text, which may hold a
// password.
func ParseAddress(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" {
		return "", errAddress
	}
	switch {
	case u.Scheme == "unix" && u.Host == "" && path.IsAbs(u.Path):
		return "unix://" + path.Clean(u.Path), nil
	case (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "":
		return (&url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host), Path: strings.TrimRight(u.Path, "/")}).String(), nil
	}
	return "", errAddress
}
