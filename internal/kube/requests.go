package kube

import (
	"context"
	"errors"
	"net/http"

	"k8s.io/client-go/rest"
)

// Observe has every request of config's clients told of once it is answered: its HTTP method, and the answer's status, or 0 when none
// came. A watch is answered when it begins. What is cut off on our side is no answer of anybody's, and not told of.
func Observe(config *rest.Config, answered func(method string, status int)) {
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(r)
			switch {
			case err == nil:
				answered(r.Method, resp.StatusCode)
			case !errors.Is(r.Context().Err(), context.Canceled):
				answered(r.Method, 0)
			}
			return resp, err
		})
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
