// SPDX-License-Identifier: Apache-2.0

// hidden holds memory in a guest that a dump must never touch: pages of
// memfd_secret(2), which are not in the kernel's direct map, and pages that were
// poisoned with MADV_HWPOISON, where the kernel can do that. It prints
//
//	hidden: holding secret=PFN,PFN,... poisoned=PFN,...
//
// with the page frames in hexadecimal, or "none (why)" for either. Until SIGTERM it makes and
// gives back more secret pages all the time. Then it checks that the secret is
// what it was, and prints "hidden: ok".
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"livedump.io/test/truth/pagemap"
)

const (
	held     = 32 // secret pages
	poisoned = 2
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == poisonVerb {
		fmt.Println(poison())
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Println("hidden: FAILED", err)
		os.Exit(1)
	}
	fmt.Println("hidden: ok")
}

func run(ctx context.Context) error {
	var frames []string
	pages, err := secret(held)
	switch {
	case errors.Is(err, unix.ENOSYS):
		frames = []string{fmt.Sprintf("none (%v)", err)} // before Linux 5.14
	case err != nil:
		return err
	default:
		fill(pages)
		if frames, err = pagemap.FramesOf(pages); err != nil {
			return err
		}
	}
	fmt.Printf("hidden: holding secret=%s poisoned=%s\n", strings.Join(frames, ","), poisonedBy(exec.Command("/proc/self/exe", poisonVerb)))
	if pages == nil {
		<-ctx.Done()
		return nil
	}
	for ctx.Err() == nil {
		more, err := secret(held)
		if err != nil {
			return err
		}
		fill(more)
		if err := check(more); err != nil {
			return err
		}
		if err := unix.Munmap(more); err != nil {
			return err
		}
	}
	return check(pages)
}

// secret maps pages that only this process can reach.
func secret(n int) ([]byte, error) {
	fd, err := unix.MemfdSecret(0)
	if err != nil {
		return nil, fmt.Errorf("memfd_secret: %w", err)
	}
	defer unix.Close(fd)
	bytes := n * os.Getpagesize()
	if err := unix.Ftruncate(fd, int64(bytes)); err != nil {
		return nil, err
	}
	return unix.Mmap(fd, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

func fill(b []byte) {
	for i := range b {
		b[i] = byte(i*7 + i>>12)
	}
}

func check(b []byte) error {
	want := make([]byte, len(b))
	fill(want)
	if !bytes.Equal(b, want) {
		return errors.New("secret memory is not what was written")
	}
	return nil
}

// poisonVerb is the argument with which this program only poisons pages.
const poisonVerb = "poison"

// poisonedBy runs the process that poisons pages: since Linux 6.12 or so the kernel kills it for that, by a SIGBUS that
// nothing can ignore.
func poisonedBy(c *exec.Cmd) string {
	out, err := c.Output()
	said := strings.Split(strings.TrimSpace(string(out)), "\n")
	if last := said[len(said)-1]; last != "" {
		return last
	}
	return fmt.Sprintf("none (%v)", err)
}

// poison has the kernel take some pages out of use, as if the memory were broken. It says which before.
func poison() string {
	size := os.Getpagesize()
	b, err := unix.Mmap(-1, 0, poisoned*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Sprintf("none (%v)", err)
	}
	fill(b)
	frames, err := pagemap.FramesOf(b)
	if err != nil {
		return fmt.Sprintf("none (%v)", err)
	}
	said := strings.Join(frames, ",")
	fmt.Println(said)
	if err := unix.Madvise(b, unix.MADV_HWPOISON); err != nil {
		return fmt.Sprintf("none (%v)", err)
	}
	return said
}
