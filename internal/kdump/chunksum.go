// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// chunkSum is the checksum of one chunk: XXH64 with seed 0 (xxhash, "XXH64 algorithm description").
//
// It has to find accidents, and 64 bits miss one in 2^64. SHA-256 takes more processor time than all else that an
// uncompressed dump needs, while memory is frozen. What shows that a copy is the dump is the SHA-256 of the whole, which
// the read-back computes, after the thaw.
type chunkSum uint64

const chunkSumBytes = 8

func sumChunk(b []byte) chunkSum { return chunkSum(xxhash.Sum64(b)) }

// put writes the checksum as it is on the target, little-endian.
func (s chunkSum) put(b []byte) { binary.LittleEndian.PutUint64(b, uint64(s)) }

func readChunkSum(b []byte) chunkSum { return chunkSum(binary.LittleEndian.Uint64(b)) }
