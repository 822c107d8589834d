// SPDX-License-Identifier: Apache-2.0

package snappypage

import (
	"testing"

	"livedump.io/internal/testimage"
)

func BenchmarkImage(b *testing.B) {
	e := &Encoder{}
	testimage.Bench(b, e.Encode)
}
