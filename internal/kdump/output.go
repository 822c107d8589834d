// SPDX-License-Identifier: Apache-2.0

package kdump

import "io"

// Output is where a Writer puts a dump. The Writer gives only offsets and lengths that are multiples
// of 4096 and buffers at page boundaries, so that a device opened for direct I/O takes them. Its
// methods are called from several goroutines at once.
type Output interface {
	io.WriterAt
	io.ReaderAt
	// Sync returns when everything written is on stable storage.
	Sync() error
	// Size is the room in bytes. It does not change.
	Size() int64
}

// Spiller is an Output that takes what does not stay in the dump elsewhere.
type Spiller interface {
	Output
	// Spill is where that goes, with the offsets and the size of the Output itself: room that is free there is
	// free here.
	Spill() Output
}
