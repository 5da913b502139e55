// Package page has the tests of the provider's page that need a browser; `make page` runs them.
package page
