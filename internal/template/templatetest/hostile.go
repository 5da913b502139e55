package templatetest

// What is said of templates that take too much.
const (
	TooGreat = "needs more memory than it may use"
	TooSlow  = "takes too long to compute"
	TooLarge = "make more than 1 MiB"
)

// Hostile are templates that would take the node, with what is said of each.
var Hostile = map[string]struct{ Text, Says string }{
	"endless range":           {`{{ range loop 9999999999999 }}{{ end }}`, TooSlow},
	"endless output":          {`{{ range loop 9999999999999 }}0123456789{{ end }}`, ""}, // whichever comes first
	"a channel without end":   {`{{ range loop 9999999999999 }}{{ $x := loop 99999999 }}{{ end }}`, ""},
	"giant repeat":            {`{{ sprig_repeat 2000000000 "x" }}`, TooGreat},
	"giant indent":            {`{{ indent 2000000000 "x" }}`, TooGreat},
	"giant list":              {`{{ sprig_until 2000000000 }}`, TooGreat},
	"giant printf":            {`{{ printf "%1000000d%1000000d%1000000d" 1 1 1 }}`, TooLarge},
	"doubling":                {`{{ $x := "0123456789abcdef" }}{{ range loop 40 }}{{ $x = printf "%s%s" $x $x }}{{ end }}`, TooGreat},
	"doubling, kept":          {`{{ scratch.Set "x" "0123456789abcdef" }}{{ range $i := loop 40 }}{{ scratch.Set (print $i) (scratch.Get "x") }}{{ scratch.Set "x" (printf "%s%s" (scratch.Get "x") (scratch.Get "x")) }}{{ end }}`, TooGreat},
	"recursion":               {`{{ define "a" }}{{ template "a" }}{{ end }}{{ template "a" }}`, TooGreat},
	"recursion by a function": {`{{ define "a" }}{{ executeTemplate "a" }}{{ end }}{{ template "a" }}`, TooGreat},
	"exponential recursion":   {`{{ define "a" }}{{ if lt (len .) 40 }}{{ template "a" (printf "%sx" .) }}{{ template "a" (printf "%sx" .) }}{{ end }}{{ end }}{{ template "a" "" }}`, TooSlow},
	"authorities":             {`{{ range loop 99999 }}{{ $x := sprig_genCA "x" 1 }}{{ end }}`, TooSlow},
	"keys":                    {`{{ range loop 99999 }}{{ $x := sprig_genPrivateKey "rsa" }}{{ end }}`, TooSlow},
	"passwords":               {`{{ range loop 99999 }}{{ $x := sprig_derivePassword 1 "long" "password" "user" "example.com" }}{{ end }}`, ""},
	"bcrypt":                  {`{{ range loop 99999 }}{{ $x := sprig_bcrypt "x" }}{{ end }}`, TooSlow},
	"deep JSON":               {`{{ $x := parseJSON (sprig_repeat 5000000 "[") }}`, ""},
	"billion laughs":          {`{{ parseYAML "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]" | toJSON }}`, ""},
	"waits for itself":        {`{{ if scratch.TryLock }}{{ scratch.Set "a" 1 }}{{ end }}`, ""},
	"its own map":             {`{{ $d := sprig_dict "a" 1 }}{{ $_ := sprig_set $d "b" $d }}{{ $d | toYAML }}`, ""},
}
