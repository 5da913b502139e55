package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// digest covers what users wrote, word by word, and what s was resolved to where defaults could have filled gaps. Empty
// settings are left out, so that a later version can add one without every volume of a node getting a new login.
func digest(params map[string]string, s *Spec) string {
	wish := map[string]string{
		"=address":     s.Server.Address,
		"=caCert":      s.Server.CACert,
		"=caDirectory": s.Server.CADirectory,
		"=serverName":  s.Server.ServerName,
		"=clientCert":  s.Server.ClientCert,
		"=clientKey":   s.Server.ClientKey,
		"=skipVerify":  strconv.FormatBool(s.Server.SkipVerify),
		"=namespace":   s.Namespace,
		"=authMount":   s.Auth.Mount,
	}
	for key, value := range params {
		if !strings.HasPrefix(key, ownedPrefix) {
			wish["+"+key] = value
		}
	}
	var text []byte
	add := func(s string) { text = append(append(strconv.AppendInt(text, int64(len(s)), 10), ':'), s...) }
	for _, key := range slices.Sorted(maps.Keys(wish)) {
		if value := wish[key]; value != "" {
			add(key)
			add(value)
		}
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
