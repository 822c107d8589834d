// SPDX-License-Identifier: Apache-2.0

package isolate

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test program is also the program that is isolated: this says as what.
const roleVariable = "LIVEDUMP_ISOLATE_TEST"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(Main("isolate-test", func(ctx context.Context, env *Environment) int { return play(ctx, env, role) }))
	}
	os.Exit(m.Run())
}

// play is what runs isolated. It tells what it sees on its output.
func play(ctx context.Context, env *Environment, role string) int {
	fmt.Println("pid", os.Getpid())
	fmt.Println("host-pid", env.HostPID)
	fmt.Println("state", env.State)
	links, _ := net.Interfaces()
	for _, link := range links {
		fmt.Println("link", link.Name, link.Flags&net.FlagUp != 0)
	}
	if err := env.ReplaceFile("/etc/hosts", []byte("replaced")); err != nil {
		fmt.Println("error", err)
	}
	hosts, _ := os.ReadFile("/etc/hosts")
	fmt.Println("hosts", string(hosts))
	fmt.Println("end")
	switch role {
	case "status":
		return 7
	case "keep":
		if err := env.Keep(3); err != nil {
			return 1
		}
	}
	<-ctx.Done()
	return 0
}

// start runs the program and returns what it told before "end".
func start(t *testing.T, role string) (*exec.Cmd, map[string]string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	told := map[string]string{}
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "end"; {
		key, value, _ := strings.Cut(lines.Text(), " ")
		told[key] += value
	}
	if told["state"] == "" || told["host-pid"] == "" {
		_ = cmd.Process.Kill()
		t.Fatalf("it told %q, and on stderr: %s", told, stderr.String())
	}
	return cmd, told
}

// gone waits until a process and its state directory are no more.
func gone(t *testing.T, told map[string]string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, processErr := os.Stat("/proc/" + told["host-pid"])
		_, stateErr := os.Stat(told["state"])
		if processErr != nil && stateErr != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still there: process %v, state %v", processErr == nil, stateErr == nil)
		}
	}
}

func TestNamespacesAndStatus(t *testing.T) {
	before, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	cmd, told := start(t, "status")
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("ended with %v, want status 7", err)
	}
	if told["pid"] != "1" {
		t.Errorf("its pid is %s, want 1", told["pid"])
	}
	if told["link"] != "lo true" {
		t.Errorf("its network interfaces are %q, want the loopback alone, up", told["link"])
	}
	if told["hosts"] != "replaced" {
		t.Errorf("it sees /etc/hosts as %q", told["hosts"])
	}
	after, err := os.ReadFile("/etc/hosts")
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the machine's /etc/hosts changed (%v)", err)
	}
	gone(t, told)
}

func TestSignalEndsIt(t *testing.T) {
	cmd, told := start(t, "wait")
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
	gone(t, told)
}

// However the outer process goes, the inner one does not stay.
func TestKilledOuterProcess(t *testing.T) {
	cmd, told := start(t, "wait")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	gone(t, told)
}

func TestKeep(t *testing.T) {
	cmd, told := start(t, "keep")
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("the outer process ended with %v, want status 3", err)
	}
	if _, err := os.Stat("/proc/" + told["host-pid"]); err != nil {
		t.Fatalf("the inner process has gone too: %v", err)
	}
	var pid int
	if _, err := fmt.Sscan(told["host-pid"], &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	gone(t, told)
}
