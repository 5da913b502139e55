package syntax

import (
	"maps"
	"slices"
	"strings"
)

// The functions that read from Vault. [Check] tells which of their calls are certain.
const (
	Secret  = "secret"
	Secrets = "secrets"
	PKICert = "pkiCert"
)

// allowed are the functions of a template: those of text/template, of consul-template and, with sprig_ before their names, of sprig, that
// do nothing but compute. They are listed one by one, so that what a newer version brings is refused until somebody has looked at it.
var allowed = set("", `
	and call eq ge gt html index js le len lt ne not or print printf println slice urlquery
	secret secrets pkiCert
	add base64Decode base64Encode base64URLDecode base64URLEncode contains containsAll containsAny containsNone containsNotAll divide
	executeTemplate explodeMap hmacSHA256Hex in indent join loop maximum md5sum mergeMap mergeMapWithOverride minimum modulo multiply
	parseBool parseFloat parseInt parseJSON parseUint parseYAML regexMatch regexReplaceAll replaceAll scratch sha256Hex split splitToMap
	spew_sdump spew_sprintf subtract timestamp toJSON toJSONPretty toLower toTOML toTitle toUnescapedJSON toUnescapedJSONPretty toUpper
	toYAML trim trimPrefix trimSpace trimSuffix`,
	sprigPrefix, `
	abbrev abbrevboth add add1 add1f addf adler32sum ago all any append atoi b32dec b32enc b64dec b64enc base bcrypt biggest
	buildCustomCert camelcase cat ceil chunk clean coalesce compact concat contains decryptAES deepCopy deepEqual default
	derivePassword dict dig dir div divf duration durationRound empty encryptAES ext fail first float64 floor fromJson genCA
	genCAWithKey genPrivateKey genSelfSignedCert genSelfSignedCertWithKey genSignedCert genSignedCertWithKey get has hasKey hasPrefix
	hasSuffix hello htpasswd indent initial initials int int64 isAbs join kebabcase keys kindIs kindOf last list lower max maxf merge
	mergeOverwrite min minf mod mul mulf mustAppend mustChunk mustCompact mustDateModify mustDeepCopy mustFirst mustFromJson mustHas
	mustInitial mustLast mustMerge mustMergeOverwrite mustPrepend mustPush mustRegexFind mustRegexFindAll mustRegexMatch
	mustRegexReplaceAll mustRegexReplaceAllLiteral mustRegexSplit mustRest mustReverse mustSlice mustToDate mustToJson
	mustToPrettyJson mustToRawJson mustUniq mustWithout must_date_modify nindent nospace omit osBase osClean osDir osExt osIsAbs pick
	pluck plural prepend push quote randInt regexFind regexFindAll regexMatch regexQuoteMeta regexReplaceAll regexReplaceAllLiteral
	regexSplit repeat replace rest reverse round semver semverCompare seq set sha1sum sha256sum sha512sum shuffle slice snakecase
	sortAlpha split splitList splitn squote sub subf substr swapcase ternary title toDate toDecimal toJson toPrettyJson toRawJson
	toString toStrings trim trimAll trimPrefix trimSuffix trimall trunc tuple typeIs typeIsLike typeOf uniq unixEpoch unset until
	untilStep untitle upper urlJoin urlParse values without wrap wrapWith`)

const sprigPrefix = "sprig_"

// refused are consul-template's functions that reach elsewhere, by what they do there.
var refused = reasons(map[string]string{
	"reads Consul": "byKey byMeta byPort byTag caLeaf caRoots connect datacenters explode exportedServices key keyExists keyOrDefault ls node nodes partitions peerings safeLs safeTree service services tree",
	"reads Nomad":  "nomadService nomadServices nomadVar nomadVarExists nomadVarList nomadVarListSafe",
	"reads files":  "file",
	"writes files, and each file is an object of its own here": "writeToFile",
	"runs programs":                     "plugin",
	"reads the environment":             "env envOrDefault mustEnv",
	"reads the node's addresses":        "sockaddr",
	"prints elsewhere than in the file": "spew_dump spew_printf",
})

// Allowed reports whether a template may call a function.
func Allowed(name string) bool { return allowed[name] }

// Refused are the names of consul-template's functions that no template may call, sorted.
func Refused() []string { return slices.Sorted(maps.Keys(refused)) }

// set is made of pairs: a prefix, and the names that have it.
func set(pairs ...string) map[string]bool {
	names := make(map[string]bool)
	for i := 0; i < len(pairs); i += 2 {
		for name := range strings.FieldsSeq(pairs[i+1]) {
			names[pairs[i]+name] = true
		}
	}
	return names
}

func reasons(names map[string]string) map[string]string {
	by := make(map[string]string)
	for reason, list := range names {
		for name := range strings.FieldsSeq(list) {
			by[name] = reason
		}
	}
	return by
}

// problem says why a function cannot be called; empty when it can.
func problem(name string) string {
	switch reason, known := refused[name]; {
	case allowed[name]:
		return ""
	case known:
		return "function " + name + " is refused: it " + reason
	case allowed[sprigPrefix+name]:
		return "there is no function " + shorten(name) + "; sprig's is called " + sprigPrefix + name
	}
	return "there is no function " + shorten(name)
}
