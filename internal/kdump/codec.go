// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"livedump.io/internal/snappypage"
	"livedump.io/internal/zstdpage"
)

// Codec compresses pages. Each page is compressed by itself, as the format wants it.
type Codec uint8

// The codecs that crash, libkdumpfile and makedumpfile all read.
const (
	CodecZstd Codec = iota
	CodecZlib
	CodecSnappy
	CodecNone
)

var codecNames = [...]string{"zstd", "zlib", "snappy", "none"}

func (c Codec) String() string {
	if int(c) < len(codecNames) {
		return codecNames[c]
	}
	return fmt.Sprintf("Codec(%d)", uint8(c))
}

// ParseCodec takes a name in any case: zstd, zlib, snappy, none.
func ParseCodec(name string) (Codec, error) {
	for i, n := range codecNames {
		if strings.EqualFold(n, name) {
			return Codec(i), nil
		}
	}
	return 0, fmt.Errorf("unknown compression %q: it is one of %s", name, strings.Join(codecNames[:], ", "))
}

func (c Codec) descFlags() uint32 {
	return [...]uint32{descZstd, descZlib, descSnappy, 0}[c]
}

// compressedRoom is more than any codec makes of one page.
const compressedRoom = 2 * PageSize

// compressor belongs to one goroutine and allocates nothing per page.
type compressor interface {
	// appendPage appends the compressed page to dst, which has compressedRoom left. What does not
	// shrink may be given up half-way: then the length is PageSize or more.
	appendPage(dst, page []byte) ([]byte, error)
}

// Levels says which levels a codec has, the fastest first. A codec without levels has none.
func (c Codec) Levels() (fastest, smallest int) {
	switch c {
	case CodecZstd:
		return 1, 4
	case CodecZlib:
		return zlib.BestSpeed, zlib.BestCompression
	}
	return 0, 0
}

// newCompressor returns nil for CodecNone.
func newCompressor(c Codec, level int) (compressor, error) {
	fastest, smallest := c.Levels()
	if level == 0 {
		level = fastest
	}
	if level < fastest || level > smallest {
		return nil, fmt.Errorf("%s has no level %d: it is one of %d to %d", c, level, fastest, smallest)
	}
	switch c {
	case CodecZstd:
		if level == fastest {
			return &pageCompressor{}, nil
		}
		e, err := zstd.NewWriter(nil,
			zstd.WithEncoderLevel(zstd.EncoderLevel(level)),
			zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(PageSize),
			zstd.WithSingleSegment(true),
			zstd.WithEncoderCRC(false), // PageInfo has a CRC of the content
			zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return &zstdCompressor{e}, nil
	case CodecZlib:
		z := &zlibCompressor{}
		w, err := zlib.NewWriterLevel(&z.out, level)
		if err != nil {
			return nil, fmt.Errorf("zlib: %w", err)
		}
		z.w = w
		return z, nil
	case CodecSnappy:
		return &snappyCompressor{}, nil
	case CodecNone:
		return nil, nil
	}
	return nil, fmt.Errorf("unknown codec %d", c)
}

type pageCompressor struct{ e zstdpage.Encoder }

func (z *pageCompressor) appendPage(dst, page []byte) ([]byte, error) {
	out, ok := z.e.Encode(dst, page)
	if !ok {
		out = dst[:len(dst)+PageSize]
	}
	return out, nil
}

type zstdCompressor struct{ e *zstd.Encoder }

func (z *zstdCompressor) appendPage(dst, page []byte) ([]byte, error) {
	return z.e.EncodeAll(page, dst), nil
}

type zlibCompressor struct {
	w   *zlib.Writer
	out appender
}

func (z *zlibCompressor) appendPage(dst, page []byte) ([]byte, error) {
	z.out.b = dst
	z.w.Reset(&z.out)
	if _, err := z.w.Write(page); err != nil {
		return nil, fmt.Errorf("zlib: %w", err)
	}
	if err := z.w.Close(); err != nil {
		return nil, fmt.Errorf("zlib: %w", err)
	}
	return z.out.b, nil
}

type appender struct{ b []byte }

func (a *appender) Write(p []byte) (int, error) {
	a.b = append(a.b, p...)
	return len(p), nil
}

type snappyCompressor struct{ e snappypage.Encoder }

func (s *snappyCompressor) appendPage(dst, page []byte) ([]byte, error) {
	out, ok := s.e.Encode(dst, page)
	if !ok {
		out = dst[:len(dst)+PageSize]
	}
	return out, nil
}

// decompressor belongs to one goroutine. It never writes more than one page.
type decompressor struct {
	zs *zstd.Decoder
	zl io.ReadCloser
	in bytes.Reader
}

var errPageSize = errors.New("does not decompress to 4096 bytes")

// page decompresses src, stored with these descriptor flags, into dst, which is one page long.
func (d *decompressor) page(dst, src []byte, flags uint32) error {
	switch flags & descCompressed {
	case 0:
		if len(src) != PageSize {
			return fmt.Errorf("stored without compression in %d bytes", len(src))
		}
		copy(dst, src)
		return nil
	case descZstd:
		return d.zstd(dst, src)
	case descZlib:
		return d.zlib(dst, src)
	case descSnappy:
		n, err := snappy.DecodedLen(src)
		if err != nil {
			return fmt.Errorf("snappy: %w", err)
		}
		if n != PageSize {
			return errPageSize
		}
		if _, err := snappy.Decode(dst[:PageSize], src); err != nil {
			return fmt.Errorf("snappy: %w", err)
		}
		return nil
	case descLZO:
		return errors.New("compressed with LZO, which livedump does not read")
	}
	return fmt.Errorf("unknown compression flags %#x", flags)
}

func (d *decompressor) zstd(dst, src []byte) error {
	if d.zs == nil {
		zs, err := zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return fmt.Errorf("zstd: %w", err)
		}
		d.zs = zs
	}
	out, err := d.zs.DecodeAll(src, dst[:0:PageSize])
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	if len(out) != PageSize {
		return errPageSize
	}
	return nil
}

func (d *decompressor) zlib(dst, src []byte) error {
	d.in.Reset(src)
	if d.zl == nil {
		zl, err := zlib.NewReader(&d.in)
		if err != nil {
			return fmt.Errorf("zlib: %w", err)
		}
		d.zl = zl
	} else if err := d.zl.(zlib.Resetter).Reset(&d.in, nil); err != nil {
		return fmt.Errorf("zlib: %w", err)
	}
	if _, err := io.ReadFull(d.zl, dst[:PageSize]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return errPageSize
		}
		return fmt.Errorf("zlib: %w", err)
	}
	// The checksum is read with the end of the stream.
	var more [1]byte
	switch n, err := d.zl.Read(more[:]); {
	case n != 0:
		return errPageSize
	case err != io.EOF:
		return fmt.Errorf("zlib: %w", err)
	}
	return nil
}

func (d *decompressor) close() {
	if d.zs != nil {
		d.zs.Close()
	}
}
