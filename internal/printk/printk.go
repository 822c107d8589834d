// SPDX-License-Identifier: Apache-2.0

// Package printk reads the kernel's log from a dump, with what VMCOREINFO says of it: the ring buffer of
// records since Linux 5.10, and the one before.
package printk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"livedump.io/internal/kernelmem"
)

// Record is a message.
type Record struct {
	Seq  uint64        `json:"seq"`
	Time time.Duration `json:"ns"` // since boot
	Text string        `json:"text"`
}

// ErrDamaged: the log contradicts itself.
var ErrDamaged = errors.New("the kernel's log is damaged")

const (
	maxLogBytes = 1 << 30
	maxRecords  = 1 << 26
)

// Read calls f with all messages, the oldest first.
func Read(m *kernelmem.Memory, f func(Record) error) error {
	if _, ok := m.Info["SYMBOL(prb)"]; ok {
		return readRing(m, f)
	}
	if _, ok := m.Info["SYMBOL(log_buf)"]; ok {
		return readOld(m, f)
	}
	return errors.New("VMCOREINFO does not say where the kernel's log is")
}

// reader keeps the first error, so that many numbers can be read in a row.
type reader struct {
	m   *kernelmem.Memory
	err error
}

func (r *reader) keep(v uint64, err error) uint64 {
	if r.err == nil {
		r.err = err
	}
	return v
}

func (r *reader) symbol(name string) uint64 { return r.keep(r.m.Symbol(name)) }
func (r *reader) offset(name string) uint64 { return r.keep(r.m.Offset(name)) }
func (r *reader) size(name string) uint64   { return r.keep(r.m.StructSize(name)) }

func (r *reader) u64(addr uint64) uint64 {
	if r.err != nil {
		return 0
	}
	return r.keep(r.m.Uint64(addr))
}

func (r *reader) u32(addr uint64) uint64 {
	if r.err != nil {
		return 0
	}
	v, err := r.m.Uint32(addr)
	return r.keep(uint64(v), err)
}

// States of a descriptor, in the two highest bits of its state; the others are its ID.
const (
	stateShift = 62
	committed  = 1
	finalized  = 2
	idMask     = 1<<stateShift - 1
)

// ring is where the parts of the ring buffer are.
type ring struct {
	count, size        uint64 // of descriptors, of text in bytes
	descs, infos, text uint64
	descBytes          uint64
	infoBytes          uint64
	state, begin, next uint64 // in a descriptor
	seq, nsec, length  uint64 // in an info
	tail, head         uint64 // IDs
}

func readRing(m *kernelmem.Memory, f func(Record) error) error {
	r := &reader{m: m}
	prb := r.u64(r.symbol("prb"))
	dr := prb + r.offset("printk_ringbuffer.desc_ring")
	tr := prb + r.offset("printk_ringbuffer.text_data_ring")
	counter := r.offset("atomic_long_t.counter")
	countBits, sizeBits := r.u32(dr+r.offset("prb_desc_ring.count_bits")), r.u32(tr+r.offset("prb_data_ring.size_bits"))
	if r.err == nil && (countBits >= 27 || sizeBits >= 31) {
		return fmt.Errorf("%w: 2^%d descriptors, 2^%d bytes", ErrDamaged, countBits, sizeBits)
	}
	lpos := r.offset("prb_desc.text_blk_lpos")
	b := ring{
		count: 1 << countBits, size: 1 << sizeBits,
		descs: r.u64(dr + r.offset("prb_desc_ring.descs")), infos: r.u64(dr + r.offset("prb_desc_ring.infos")),
		text: r.u64(tr + r.offset("prb_data_ring.data")), descBytes: r.size("prb_desc"), infoBytes: r.size("printk_info"),
		state: r.offset("prb_desc.state_var") + counter,
		begin: lpos + r.offset("prb_data_blk_lpos.begin"), next: lpos + r.offset("prb_data_blk_lpos.next"),
		seq: r.offset("printk_info.seq"), nsec: r.offset("printk_info.ts_nsec"), length: r.offset("printk_info.text_len"),
		tail: r.u64(dr+r.offset("prb_desc_ring.tail_id")+counter) & idMask,
		head: r.u64(dr+r.offset("prb_desc_ring.head_id")+counter) & idMask,
	}
	if r.err != nil {
		return r.err
	}
	if (b.head-b.tail)&idMask >= b.count {
		return fmt.Errorf("%w: it goes from descriptor %d to %d of %d", ErrDamaged, b.tail, b.head, b.count)
	}
	for id := b.tail; ; id = (id + 1) & idMask {
		rec, ok, err := b.record(m, id)
		if err != nil {
			return fmt.Errorf("descriptor %d: %w", id&(b.count-1), err)
		}
		if ok {
			if err := f(rec); err != nil {
				return err
			}
		}
		if id == b.head {
			return nil
		}
	}
}

// record reads the record of an ID, if there is one: its writer may not have come to an end.
func (b *ring) record(m *kernelmem.Memory, id uint64) (rec Record, ok bool, err error) {
	r := &reader{m: m}
	i := id & (b.count - 1)
	desc, info := b.descs+i*b.descBytes, b.infos+i*b.infoBytes
	state := r.u64(desc + b.state)
	if s := state >> stateShift; r.err != nil || state&idMask != id || s != committed && s != finalized {
		return rec, false, r.err
	}
	begin, next := r.u64(desc+b.begin), r.u64(desc+b.next)
	rec.Seq, rec.Time = r.u64(info+b.seq), time.Duration(r.u64(info+b.nsec))
	length := r.u32(info+b.length) & 0xffff
	if r.err != nil || begin&1 != 0 && next&1 != 0 { // no text, or it did not fit
		return rec, r.err == nil, r.err
	}
	// A block of text has its descriptor's ID in front. One that would go beyond the end is at the start.
	const idBytes = 8
	at, end := begin&(b.size-1), next&(b.size-1)
	if begin&^(b.size-1) != next&^(b.size-1) && end != 0 {
		at = 0
	}
	if end == 0 {
		end = b.size
	}
	if at+idBytes > end {
		return rec, false, fmt.Errorf("%w: text from %d to %d", ErrDamaged, at, end)
	}
	text := make([]byte, min(length, end-at-idBytes))
	if err := m.Read(b.text+at+idBytes, text); err != nil {
		return rec, false, err
	}
	rec.Text = string(text)
	return rec, true, nil
}

// readOld reads the buffer of kernels before 5.10: records one after the other, and one of length 0 where
// the next one is at the start.
func readOld(m *kernelmem.Memory, f func(Record) error) error {
	r := &reader{m: m}
	buf, size := r.u64(r.symbol("log_buf")), r.u32(r.symbol("log_buf_len"))
	at, end := r.u32(r.symbol("log_first_idx")), r.u32(r.symbol("log_next_idx"))
	header := r.size("printk_log")
	nsec, length, textLength := r.offset("printk_log.ts_nsec"), r.offset("printk_log.len"), r.offset("printk_log.text_len")
	if r.err != nil {
		return r.err
	}
	if size > maxLogBytes || header < 16 || max(nsec+8, length+2, textLength+2) > header {
		return fmt.Errorf("%w: a buffer of %d bytes, headers of %d", ErrDamaged, size, header)
	}
	h := make([]byte, header)
	wrapped := false
	for seq := uint64(0); at != end && seq < maxRecords; seq++ {
		if at+header > size {
			return fmt.Errorf("%w: a record at %d of %d", ErrDamaged, at, size)
		}
		if err := m.Read(buf+at, h); err != nil {
			return err
		}
		le := binary.LittleEndian
		n, text := uint64(le.Uint16(h[length:])), uint64(le.Uint16(h[textLength:]))
		if n == 0 {
			if wrapped || at == 0 {
				return fmt.Errorf("%w: it has no end", ErrDamaged)
			}
			at, wrapped = 0, true
			continue
		}
		if n < header || text > n-header || n > size-at {
			return fmt.Errorf("%w: a record of %d bytes with %d of text at %d", ErrDamaged, n, text, at)
		}
		b := make([]byte, text)
		if err := m.Read(buf+at+header, b); err != nil {
			return err
		}
		if err := f(Record{Seq: seq, Time: time.Duration(le.Uint64(h[nsec:])), Text: string(b)}); err != nil {
			return err
		}
		at += n
	}
	return nil
}
