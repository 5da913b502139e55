package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"hash/maphash"
	"io"
	"slices"

	"go.etcd.io/bbolt"
)

// How bbolt lays a file out (its internal/common/page.go): a page begins with id uint64, flags uint16, count uint16, overflow
// uint32; then come count elements, of a branch position uint32, key size uint32, page uint64, of a leaf flags uint32, position
// uint32, key size uint32, value size uint32, where a position counts from its element. A bucket's value begins with its root page
// uint64 and a sequence uint64; root 0 says that its one page follows at once. Page 0 or 1, in turn, tells where a transaction left
// all this. The list of free pages is of uint64; where count does not suffice, the first of them is the count.
const (
	pageHeader, elementSize, bucketHeader = 16, 16, 16
	metaRoot, metaFreelist, metaPages     = 32, 48, 56

	branchPage, leafPage, freelistPage = 1, 2, 16

	bucketElement = 1
	countFollows  = 0xffff
)

// checker reads the structure of a file from its bytes. bbolt reads it where it is mapped and trusts what it finds, and a size
// that points beyond the file is a fault, often in a goroutine of bbolt's own: it would end the process, and the next one.
type checker struct {
	file     io.ReaderAt
	pageSize int
	used     []bool
	buckets  [][]byte
	// balance sums what the ids in the ledger hash to and takes off what those in the index do.
	seed    maphash.Seed
	balance uint64
}

// check returns errUnsound when any page of the transaction's file is not as bbolt writes it.
func check(tx *bbolt.Tx, file io.ReaderAt) error {
	c := checker{file: file, pageSize: tx.DB().Info().PageSize, seed: maphash.MakeSeed()}
	meta := make([]byte, c.pageSize)
	if !c.read(meta, uint64(tx.ID()%2)) { // bbolt has checked its sum
		return errUnsound
	}
	c.used = make([]bool, binary.NativeEndian.Uint64(meta[metaPages:]))
	c.used[0], c.used[1] = true, true
	if err := c.free(binary.NativeEndian.Uint64(meta[metaFreelist:])); err != nil {
		return err
	}
	if err := c.tree(binary.NativeEndian.Uint64(meta[metaRoot:]), nil, nil, nil); err != nil {
		return err
	}
	if slices.Contains(c.used, false) || c.balance != 0 {
		return errUnsound
	}
	if len(c.buckets) > 0 && (!c.has(ledgerBucket) || !c.has(volumeBucket)) {
		return errUnsound // one commit makes them all
	}
	return nil
}

func (c *checker) has(bucket []byte) bool {
	return slices.ContainsFunc(c.buckets, func(name []byte) bool { return bytes.Equal(name, bucket) })
}

// use counts pages as used; false: one is so already, or is none of the file's.
func (c *checker) use(id, span uint64) bool {
	all := uint64(len(c.used))
	if id >= all || span > all-id || slices.Contains(c.used[id:id+span], true) {
		return false
	}
	for at := id; at < id+span; at++ {
		c.used[at] = true
	}
	return true
}

// free counts the free pages as used, and their list.
func (c *checker) free(id uint64) error {
	page, ok := c.load(id)
	if !ok || binary.NativeEndian.Uint16(page[8:]) != freelistPage {
		return errUnsound
	}
	count, ids := uint64(binary.NativeEndian.Uint16(page[10:])), page[pageHeader:]
	if count == countFollows {
		count, ids = binary.NativeEndian.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids))/8 {
		return errUnsound
	}
	for i := range count {
		if !c.use(binary.NativeEndian.Uint64(ids[8*i:]), 1) {
			return errUnsound
		}
	}
	return nil
}

// load reads a page that nothing else uses; false: there is none.
func (c *checker) load(id uint64) ([]byte, bool) {
	header := make([]byte, pageHeader)
	if id >= uint64(len(c.used)) || !c.read(header, id) {
		return nil, false
	}
	span := uint64(binary.NativeEndian.Uint32(header[12:])) + 1
	if binary.NativeEndian.Uint64(header) != id || !c.use(id, span) {
		return nil, false
	}
	page := make([]byte, span*uint64(c.pageSize))
	return page, c.read(page, id)
}

// tree checks a page of a bucket, nil at the top, and all below it. The keys lie between low and high; nil: no bound.
func (c *checker) tree(id uint64, low, high []byte, bucket []byte) error {
	page, ok := c.load(id)
	if !ok {
		return errUnsound
	}
	return c.page(page, low, high, bucket)
}

func (c *checker) read(to []byte, id uint64) bool {
	_, err := c.file.ReadAt(to, int64(id)*int64(c.pageSize))
	return err == nil
}

// page checks the elements of a page.
func (c *checker) page(page, low, high []byte, bucket []byte) error {
	if len(page) < pageHeader {
		return errUnsound
	}
	flags, count := binary.NativeEndian.Uint16(page[8:]), int(binary.NativeEndian.Uint16(page[10:]))
	if flags != branchPage && flags != leafPage || flags == branchPage && count == 0 || pageHeader+count*elementSize > len(page) {
		return errUnsound
	}
	var previous element
	for i := range count {
		e, ok := elementAt(page, pageHeader+i*elementSize, flags)
		if !ok || bytes.Compare(e.key, low) < 0 || high != nil && bytes.Compare(e.key, high) >= 0 || i > 0 && bytes.Compare(previous.key, e.key) >= 0 {
			return errUnsound
		}
		if flags == leafPage {
			if err := c.leaf(e, bucket); err != nil {
				return err
			}
		} else if i > 0 {
			if err := c.tree(previous.child, previous.key, e.key, bucket); err != nil {
				return err
			}
		}
		previous = e
	}
	if flags == leafPage {
		return nil
	}
	return c.tree(previous.child, previous.key, high, bucket)
}

// leaf checks an entry: at the top it is a bucket, in the ledger a record under its id, and elsewhere a plain value.
func (c *checker) leaf(e element, bucket []byte) error {
	top := bucket == nil
	switch {
	case e.bucket != top, top && len(e.value) < bucketHeader:
		return errUnsound
	case bytes.Equal(bucket, ledgerBucket):
		c.balance += maphash.Bytes(c.seed, e.key)
		if !ownKey(e) {
			return errUnsound
		}
	case bytes.Equal(bucket, volumeBucket):
		c.balance -= maphash.Bytes(c.seed, e.key[bytes.LastIndexByte(e.key, '/')+1:])
	}
	if !top {
		return nil
	}
	c.buckets = append(c.buckets, e.key)
	if root := binary.NativeEndian.Uint64(e.value); root != 0 {
		return c.tree(root, nil, nil, e.key)
	}
	inline := e.value[bucketHeader:]
	if len(inline) < pageHeader || binary.NativeEndian.Uint16(inline[8:]) != leafPage {
		return errUnsound
	}
	return c.page(inline, nil, nil, e.key)
}

// ownKey tells whether a record stands under its id. One that cannot be read at all is told of where the ledger is read.
func ownKey(e element) bool {
	var r struct {
		ID string `json:"id"`
	}
	return json.Unmarshal(e.value, &r) != nil || r.ID == string(e.key)
}

// element is an entry of a page: of a branch key and child, of a leaf the rest.
type element struct {
	key, value []byte
	child      uint64
	bucket     bool
}

// elementAt reads the element at an offset; false: it lies beyond the page.
func elementAt(page []byte, at int, flags uint16) (element, bool) {
	field := func(i int) int { return int(binary.NativeEndian.Uint32(page[at+4*i:])) }
	var e element
	var pos, keySize, valueSize int
	if flags == branchPage {
		pos, keySize, e.child = field(0), field(1), binary.NativeEndian.Uint64(page[at+8:])
	} else {
		pos, keySize, valueSize, e.bucket = field(1), field(2), field(3), field(0)&bucketElement != 0
	}
	start := at + pos
	if start+keySize+valueSize > len(page) {
		return element{}, false
	}
	e.key, e.value = page[start:start+keySize], page[start+keySize:start+keySize+valueSize]
	return e, true
}
