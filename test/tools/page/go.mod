// Module page looks at the provider's page in Chromium, which is driven by its DevTools protocol; only its tests need the library.
module github.com/leasehold-csi/leasehold/test/tools/page

go 1.26.0

require (
	github.com/chromedp/cdproto v0.159.0
	github.com/chromedp/chromedp v0.23.0
	github.com/leasehold-csi/leasehold v0.0.0
)

require github.com/go-json-experiment/json v0.0.0-20260213210345-44df1a37e875 // indirect

replace github.com/leasehold-csi/leasehold => ../../..
