package spec

import "k8s.io/utils/lru"

const (
	maxLists = 128
	maxList  = 8 << 10 // bytes of a text that is remembered
)

// Lists remembers lists of objects as they were parsed: kubelet sends the text of a class with every call for each of its pods. What
// is seldom asked for, large or faulty is parsed each time.
type Lists struct{ parsed *lru.Cache }

// NewLists returns empty ones.
func NewLists() *Lists { return &Lists{lru.New(maxLists)} }

// listKey is all that decides what a text means.
type listKey struct {
	text, onPodEnd string
	mode           int32
	strict         bool
}

type parsedList struct {
	objects  []Object
	warnings []Finding
}

// objects is parseObjects, from memory when it can be.
func (p *parser) objects(mode int32) []Object {
	key := listKey{p.params[objectsKey], p.params[onPodEnd], mode, p.strict}
	if p.lists == nil || len(key.text) > maxList {
		return p.parseObjects(mode)
	}
	if known, ok := p.lists.parsed.Get(key); ok {
		list := known.(parsedList)
		p.warnings = append(p.warnings, list.warnings...)
		return list.objects
	}
	faults, warnings := len(p.faults), len(p.warnings)
	objects := p.parseObjects(mode)
	if len(p.faults) == faults {
		p.lists.parsed.Add(key, parsedList{objects, p.warnings[warnings:len(p.warnings):len(p.warnings)]})
	}
	return objects
}
