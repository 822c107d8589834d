// SPDX-License-Identifier: Apache-2.0

package printk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"livedump.io/internal/kdump"
	"livedump.io/internal/kernelmem"
)

// A kernel's memory of 64 KiB, whose addresses are base and up.
const (
	base     = 0xffffffff80000000
	memBytes = 64 << 10
)

var le = binary.LittleEndian

func read(b []byte, info string) ([]Record, error) {
	m, err := kernelmem.New(kdump.ParseVMCoreInfo([]byte("NUMBER(phys_base)=0\nSYMBOL(swapper_pg_dir)=ffffffff80000000\n"+info)),
		func(pfn uint64, page []byte) error {
			if pfn >= uint64(len(b))/4096 {
				return kdump.ErrNotRAM
			}
			copy(page, b[pfn*4096:])
			return nil
		})
	if err != nil {
		return nil, err
	}
	var all []Record
	err = Read(m, func(r Record) error {
		all = append(all, r)
		return nil
	})
	return all, err
}

const ringInfo = `SYMBOL(prb)=ffffffff80001000
OFFSET(printk_ringbuffer.desc_ring)=0
OFFSET(printk_ringbuffer.text_data_ring)=48
OFFSET(prb_desc_ring.count_bits)=0
OFFSET(prb_desc_ring.descs)=8
OFFSET(prb_desc_ring.infos)=16
OFFSET(prb_desc_ring.head_id)=24
OFFSET(prb_desc_ring.tail_id)=32
SIZE(prb_desc)=24
OFFSET(prb_desc.state_var)=0
OFFSET(prb_desc.text_blk_lpos)=8
OFFSET(prb_data_blk_lpos.begin)=0
OFFSET(prb_data_blk_lpos.next)=8
SIZE(printk_info)=88
OFFSET(printk_info.seq)=0
OFFSET(printk_info.ts_nsec)=8
OFFSET(printk_info.text_len)=16
OFFSET(prb_data_ring.size_bits)=0
OFFSET(prb_data_ring.data)=8
OFFSET(atomic_long_t.counter)=0
`

// newRing is a ring buffer of 8 descriptors and 256 bytes of text with the messages that still fit, as a
// kernel leaves it. IDs and positions wrap around soon, as a kernel lets them.
func newRing(messages []string, state func(i int) uint64) []byte {
	b := make([]byte, memBytes)
	const prb, descs, infos, text, count, size = 0x1008, 0x2000, 0x3000, 0x4ff0, 8, 256
	le.PutUint64(b[0x1000:], base+prb)
	le.PutUint32(b[prb:], 3)
	le.PutUint64(b[prb+8:], base+descs)
	le.PutUint64(b[prb+16:], base+infos)
	le.PutUint32(b[prb+48:], 8)
	le.PutUint64(b[prb+56:], base+text)
	lpos := ^uint64(0) - size + 1
	id := uint64(idMask - count)
	for i, m := range messages {
		id = (id + 1) & idMask
		k := id & (count - 1)
		begin, next := lpos, lpos+8+(uint64(len(m))+7)&^7
		at := begin & (size - 1)
		if begin&^(size-1) != (next-1)&^(size-1) { // it starts at the start
			next = (begin&^(size-1) + size) + 8 + (uint64(len(m))+7)&^7
			at = 0
		}
		if m == "" {
			begin, next = 3, 3
		} else {
			lpos = next
			le.PutUint64(b[text+at:], id)
			copy(b[text+at+8:], m)
		}
		le.PutUint64(b[descs+24*k:], state(i)<<stateShift|id)
		le.PutUint64(b[descs+24*k+8:], begin)
		le.PutUint64(b[descs+24*k+16:], next)
		le.PutUint64(b[infos+88*k:], uint64(i))
		le.PutUint64(b[infos+88*k+8:], uint64(i)*1e6)
		le.PutUint16(b[infos+88*k+16:], uint16(len(m)))
	}
	le.PutUint64(b[prb+24:], uint64(finalized)<<stateShift|id)
	// The text of older messages has been overwritten: four are left.
	le.PutUint64(b[prb+32:], uint64(finalized)<<stateShift|(id-min(3, uint64(len(messages)-1)))&idMask)
	return b
}

func TestRing(t *testing.T) {
	var messages []string
	for i := range 23 {
		messages = append(messages, fmt.Sprintf("message %d %s", i, strings.Repeat("x", i*7%40)))
	}
	messages[21] = ""
	for n := 4; n <= len(messages); n++ {
		all, err := read(newRing(messages[:n], func(i int) uint64 { return uint64(1 + i%2) }), ringInfo)
		if err != nil || len(all) != 4 {
			t.Fatalf("%d messages: %v, %+v", n, err, all)
		}
		for i, r := range all {
			k := n - 4 + i
			if r.Text != messages[k] || r.Seq != uint64(k) || r.Time != time.Duration(k)*time.Millisecond {
				t.Errorf("%d messages: %+v, want %q", n, r, messages[k])
			}
		}
	}
	// A writer that was at work, and a descriptor that is free again.
	all, err := read(newRing(messages[:12], func(i int) uint64 { return map[int]uint64{9: 0, 10: 3}[i] + map[bool]uint64{true: 2}[i < 9 || i > 10] }), ringInfo)
	if err != nil || len(all) != 2 || all[0].Text != messages[8] || all[1].Text != messages[11] {
		t.Errorf("%v: %+v", err, all)
	}
}

const oldInfo = `SYMBOL(log_buf)=ffffffff80001000
SYMBOL(log_buf_len)=ffffffff80001008
SYMBOL(log_first_idx)=ffffffff8000100c
SYMBOL(log_next_idx)=ffffffff80001010
SIZE(printk_log)=16
OFFSET(printk_log.ts_nsec)=0
OFFSET(printk_log.len)=8
OFFSET(printk_log.text_len)=10
`

func newOld(messages []string) []byte {
	b := make([]byte, memBytes)
	const buf, size = 0x2ff0, 512
	le.PutUint64(b[0x1000:], base+buf)
	le.PutUint32(b[0x1008:], size)
	at, first := 256, 256
	for i, m := range messages {
		n := 16 + (len(m)+3)&^3
		if at+n+16 > size { // as the kernel does: there must be room for an end
			clear(b[buf+at:][:16])
			at = 0
		}
		le.PutUint64(b[buf+at:], uint64(i)*1e9)
		le.PutUint16(b[buf+at+8:], uint16(n))
		le.PutUint16(b[buf+at+10:], uint16(len(m)))
		copy(b[buf+at+16:], m)
		at += n
	}
	le.PutUint32(b[0x100c:], uint32(first))
	le.PutUint32(b[0x1010:], uint32(at))
	return b
}

func TestOld(t *testing.T) {
	messages := []string{"Linux version 4.19", "", strings.Repeat("y", 130), "the first one at the start", "and\nanother"}
	all, err := read(newOld(messages), oldInfo)
	if err != nil || len(all) != len(messages) {
		t.Fatalf("%v: %+v", err, all)
	}
	for i, r := range all {
		if r.Text != messages[i] || r.Time != time.Duration(i)*time.Second {
			t.Errorf("%+v, want %q", r, messages[i])
		}
	}
}

func TestErrors(t *testing.T) {
	good := newRing([]string{"a message"}, func(int) uint64 { return finalized })
	if _, err := read(good, ""); err == nil || !strings.Contains(err.Error(), "does not say") {
		t.Errorf("no symbols: %v", err)
	}
	if _, err := read(good, strings.Replace(ringInfo, "OFFSET(prb_desc_ring.descs)=8\n", "", 1)); err == nil || !strings.Contains(err.Error(), "prb_desc_ring.descs") {
		t.Errorf("no offset: %v", err)
	}
	bad := append([]byte{}, good...)
	bad[0x1008] = 60
	if _, err := read(bad, ringInfo); !errors.Is(err, ErrDamaged) {
		t.Errorf("2^60 descriptors: %v", err)
	}
	old := newOld([]string{"a message"})
	old[0x2ff0+256+8] = 3
	if _, err := read(old, oldInfo); !errors.Is(err, ErrDamaged) {
		t.Errorf("a record that is too short: %v", err)
	}
}

// FuzzRead wants an end, and no panic, whatever is in memory.
func FuzzRead(f *testing.F) {
	f.Add(newRing([]string{"one", "two", strings.Repeat("three", 20), "four"}, func(int) uint64 { return finalized })[0x1000:0x5400], true)
	f.Add(newOld([]string{"one", strings.Repeat("two", 60), "three"})[0x1000:0x3400], false)
	f.Fuzz(func(_ *testing.T, mem []byte, ring bool) {
		b := make([]byte, memBytes)
		copy(b[0x1000:], mem)
		if ring {
			_, _ = read(b, ringInfo)
		} else {
			_, _ = read(b, oldInfo)
		}
	})
}

// FuzzInfo has a VMCOREINFO that says anything of where the parts of the log are.
func FuzzInfo(f *testing.F) {
	ring := newRing([]string{"one", "two", strings.Repeat("three", 20), "four"}, func(int) uint64 { return finalized })
	old := newOld([]string{"one", strings.Repeat("two", 60), "three"})
	f.Add([]byte(ringInfo), ring[0x1000:0x5400])
	f.Add([]byte(oldInfo), old[0x1000:0x3400])
	f.Fuzz(func(t *testing.T, info, mem []byte) {
		b := make([]byte, memBytes)
		copy(b[0x1000:], mem)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = read(b, string(info))
		runtime.ReadMemStats(&after)
		// The memory has 64 KiB; no message of it takes more, and there are not more of them than bytes.
		if n := after.TotalAlloc - before.TotalAlloc; n > 256<<20 {
			t.Errorf("%d bytes of memory", n)
		}
	})
}
