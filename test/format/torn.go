// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"livedump.io/internal/convert"
	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
	"livedump.io/internal/target"
)

// whole is the form of the dump that is torn for each format.
var whole = map[format.Format]string{format.Kdump: "zstd.kdump", format.Flattened: "zstd.flat", format.ELF: "vmcore.elf"}

// torn are dumps that were not finished, or that somebody copied only in part.
//
//	dead.*	what a process leaves that dies when it has written all pages
//	headless.*	everything but block 0, as a power cut leaves it just before the end
//	cut.*	the first part of a good dump, as an interrupted copy
func (j *judgement) torn(ctx context.Context, judge func(name, what string, f func() error)) error {
	for f, good := range whole {
		kind := strings.TrimPrefix(filepath.Ext(good), ".")
		dead, headless, cut := "dead."+kind, "headless."+kind, "cut."+kind
		if err := j.image.leave(filepath.Join(j.dir, dead), f); err != nil {
			return fmt.Errorf("%s: %w", dead, err)
		}
		refused := []string{dead}
		if f != format.Flattened { // whose last record is block 0
			if err := j.replaceBlock0(good, dead, headless); err != nil {
				return fmt.Errorf("%s: %w", headless, err)
			}
			refused = append(refused, headless)
		}
		if err := j.cut(good, cut); err != nil {
			return fmt.Errorf("%s: %w", cut, err)
		}
		for _, name := range refused {
			judge(name, "no reader takes it for a dump", func() error { return j.refused(ctx, name) })
		}
		judge(cut, "no reader takes what is left for all of it", func() error { return j.notAll(cut) })
	}
	return nil
}

// leave writes all pages and then keeps what is there as it is.
func (m *image) leave(path string, f format.Format) error {
	room, err := f.MaxRoom(m.meta.MaxPFN, m.meta.Pages, len(m.meta.Notes))
	if err != nil {
		return err
	}
	tmp := path + ".writing"
	out, err := target.CreateFile(tmp, target.FileOptions{Room: room + 1<<20})
	if err != nil {
		return err
	}
	w, err := format.NewWriter(out, f, m.meta, kdump.Options{})
	if err != nil {
		return errors.Join(err, out.Close())
	}
	err = m.give(w, nil)
	if err == nil {
		err = copySome(tmp+target.Partial, path, -1)
	}
	_ = w.Abort(errors.New("it is dead"))
	return errors.Join(err, out.Close())
}

// copySome copies the first n bytes of a file, or all.
func copySome(from, to string, n int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	src := io.Reader(in)
	if n >= 0 {
		src = io.LimitReader(in, n)
	}
	_, err = io.Copy(out, src)
	return errors.Join(err, out.Close())
}

func (j *judgement) replaceBlock0(good, dead, to string) error {
	if err := copySome(filepath.Join(j.dir, good), filepath.Join(j.dir, to), -1); err != nil {
		return err
	}
	in, err := os.Open(filepath.Join(j.dir, dead))
	if err != nil {
		return err
	}
	defer in.Close()
	block := make([]byte, kdump.PageSize)
	if _, err := in.ReadAt(block, 0); err != nil {
		return err
	}
	out, err := os.OpenFile(filepath.Join(j.dir, to), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = out.WriteAt(block, 0)
	return errors.Join(err, out.Close())
}

func (j *judgement) cut(good, to string) error {
	st, err := os.Stat(filepath.Join(j.dir, good))
	if err != nil {
		return err
	}
	return copySome(filepath.Join(j.dir, good), filepath.Join(j.dir, to), st.Size()*6/10)
}

// refused wants an error of every reader.
func (j *judgement) refused(ctx context.Context, name string) error {
	for _, r := range []reader{j.newer, j.older} {
		if said, err := r.crash([]string{name}, minimalCrash); err == nil {
			return fmt.Errorf("crash of %s: %s", r.release, said[:min(len(said), 500)])
		}
		if out, err := r.run("drgn", "-q", "-c", "/judge/format/"+name, "-s", "/judge/vmlinux", "/judge/format/pages.py", "0-1"); err == nil {
			return fmt.Errorf("drgn of %s: %s", r.release, out)
		}
	}
	if err := j.dmesg(name); err == nil {
		return errors.New("makedumpfile finds the kernel's log in it")
	}
	if s, err := convert.Open(filepath.Join(j.dir, name)); err == nil {
		return errors.Join(errors.New("livedump opens it"), s.Close())
	}
	return ctx.Err()
}

// notAll wants each reader to refuse the file, or to say of each page that is not there that it cannot be read: none may be
// something else than it is in the image.
func (j *judgement) notAll(name string) error {
	if s, err := convert.Open(filepath.Join(j.dir, name)); err == nil {
		return errors.Join(errors.New("livedump opens it"), s.Close())
	}
	for _, r := range []reader{j.newer, j.older} {
		argv := []string{"drgn", "-q", "-c", "/judge/format/" + name, "-s", "/judge/vmlinux", "/judge/format/pages.py"}
		for _, ram := range j.image.meta.RAM {
			argv = append(argv, fmt.Sprintf("%d-%d", ram.Start, ram.End))
		}
		out, err := r.run(argv...)
		if err != nil {
			continue // refused, or an error that is none of a single page
		}
		var got struct {
			SHA256 string   `json:"sha256"`
			Faults []uint64 `json:"faults"`
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
			return fmt.Errorf("drgn: %w: %s", err, out)
		}
		want, err := j.image.digestWithout(got.Faults)
		if err != nil {
			return err
		}
		if len(got.Faults) == 0 || got.SHA256 != fmt.Sprintf("%x", want) {
			return fmt.Errorf("drgn of %s cannot read %d pages, and others differ from the image: %v", r.release, len(got.Faults),
				got.SHA256 != fmt.Sprintf("%x", want))
		}
	}
	return nil
}

// digestWithout is that of all pages in order but some.
func (m *image) digestWithout(missing []uint64) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	page := make([]byte, kdump.PageSize)
	for _, pfn := range m.pfns {
		if _, found := slices.BinarySearch(missing, pfn); found {
			continue
		}
		if err := m.page(pfn, page); err != nil {
			return sum, err
		}
		_ = binary.Write(h, binary.LittleEndian, pfn)
		h.Write(page)
	}
	h.Sum(sum[:0])
	return sum, nil
}
