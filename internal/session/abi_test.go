// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// cField maps a Go field to the name in the header.
type cField struct{ goName, cName string }

var abiStructs = []struct {
	goType reflect.Type
	cName  string
	fields []cField
}{
	{reflect.TypeFor[abiPrepare](), "livedump_prepare", []cField{
		{"Size", "size"}, {"ABIVersion", "abi_version"}, {"Exclude", "exclude"}, {"Mode", "mode"},
		{"ReserveBytes", "reserve_bytes"}, {"DeadlineMS", "deadline_ms"}, {"UUID", "uuid"},
		{"MaxPFN", "max_pfn"}, {"RAMPages", "ram_pages"}, {"ReservePages", "reserve_pages"},
		{"OverheadBytes", "overhead_bytes"}, {"PrepareNS", "prepare_ns"}, {"Flags", "flags"},
		{"GraceMS", "grace_ms"}, {"Refusal", "refusal"}, {"CalibrateMS", "calibrate_ms"},
		{"ExpectedMS", "expected_ms"}, {"EstimatePages", "estimate_pages"}, {"Reserved0", "reserved0"},
	}},
	{reflect.TypeFor[abiFreeze](), "livedump_freeze", []cField{
		{"Size", "size"}, {"NrCPUs", "nr_cpus"}, {"StopNS", "stop_ns"}, {"ClassifyNS", "classify_ns"},
		{"NotesBytes", "notes_bytes"}, {"PagesToDump", "pages_to_dump"}, {"ClassPages", "class_pages"},
		{"RealtimeNS", "realtime_ns"}, {"Reserved", "reserved"},
	}},
	{reflect.TypeFor[abiNotes](), "livedump_notes", []cField{
		{"Size", "size"}, {"Reserved0", "reserved0"}, {"Buf", "buf"}, {"BufBytes", "buf_bytes"},
		{"VMCoreInfoOffset", "vmcoreinfo_offset"}, {"VMCoreInfoBytes", "vmcoreinfo_bytes"},
		{"Utsname", "utsname"}, {"Reserved", "reserved"},
	}},
	{reflect.TypeFor[Page](), "livedump_page", []cField{
		{"PFN", "pfn"}, {"Class", "class_id"}, {"Flags", "flags"},
	}},
	{reflect.TypeFor[abiNext](), "livedump_next", []cField{
		{"Size", "size"}, {"MaxPages", "max_pages"}, {"Buf", "buf"}, {"Pages", "pages"},
		{"NrPages", "nr_pages"}, {"Reserved0", "reserved0"}, {"Reserved", "reserved"},
	}},
	{reflect.TypeFor[abiStats](), "livedump_stats", []cField{
		{"Size", "size"}, {"State", "state"}, {"Failure", "failure"}, {"StopAttempts", "stop_attempts"},
		{"StopNS", "stop_ns"}, {"RendezvousNS", "rendezvous_ns"}, {"CopiesNS", "copies_ns"},
		{"EntriesNS", "entries_ns"}, {"FlushNS", "flush_ns"}, {"EntriesPUD", "entries_pud"},
		{"EntriesPMD", "entries_pmd"}, {"EntriesPTE", "entries_pte"}, {"StopCopies", "stop_copies"},
		{"Faults", "faults"}, {"FaultCopies", "fault_copies"}, {"FaultPushdowns", "fault_pushdowns"},
		{"FaultSplits", "fault_splits"}, {"FaultExcluded", "fault_excluded"}, {"Copies", "copies"},
		{"ReservePages", "reserve_pages"}, {"ReserveLow", "reserve_low"}, {"LostPages", "lost_pages"},
		{"UncoveredPages", "uncovered_pages"}, {"PagesToDump", "pages_to_dump"},
		{"PagesReported", "pages_reported"}, {"ClassPages", "class_pages"}, {"MissingCPUs", "missing_cpus"},
		{"TablesSplit", "tables_split"}, {"TablesJoined", "tables_joined"}, {"ThawNS", "thaw_ns"},
		{"RegistersNS", "registers_ns"}, {"PagesAcked", "pages_acked"},
		{"PageTables", "page_tables"}, {"Unwatched", "unwatched"}, {"DMAPages", "dma_pages"},
		{"DMADevices", "dma_devices"}, {"DMAUnknown", "dma_devices_unknown"}, {"Reserved", "reserved"},
	}},
	{reflect.TypeFor[abiAck](), "livedump_ack", []cField{
		{"Size", "size"}, {"NrPages", "nr_pages"}, {"Pages", "pages"}, {"NrAcked", "nr_acked"},
		{"Reserved", "reserved"},
	}},
	{reflect.TypeFor[abiTakeover](), "livedump_takeover", []cField{
		{"Size", "size"}, {"Flags", "flags"}, {"UUID", "uuid"}, {"DeadlineMS", "deadline_ms"},
		{"PagesReported", "pages_reported"}, {"Prepare", "prepare"}, {"Freeze", "freeze"}, {"Reserved", "reserved"},
	}},
}

var abiNumbers = map[string]uint64{
	"LIVEDUMP_IOC_PREPARE": uint64(iocPrepare), "LIVEDUMP_IOC_FREEZE": uint64(iocFreeze), "LIVEDUMP_IOC_NOTES": uint64(iocNotes),
	"LIVEDUMP_IOC_NEXT": uint64(iocNext), "LIVEDUMP_IOC_STATS": uint64(iocStats), "LIVEDUMP_IOC_THAW": uint64(iocThaw),
	"LIVEDUMP_ABI_VERSION": abiVersion, "LIVEDUMP_PAGE_SIZE": PageSize, "LIVEDUMP_NEXT_MAX": MaxBatch,
	"LIVEDUMP_CLASS_SLOTS":  classSlots,
	"LIVEDUMP_PREPARE_KEEP": prepareKeep, "LIVEDUMP_PREPARE_ACK": prepareAck, "LIVEDUMP_IOC_ACK": uint64(iocAck),
	"LIVEDUMP_PREPARE_FLAGS": prepareFlags,
	"LIVEDUMP_EXCLUDE_ZERO":  uint64(ExcludeZero), "LIVEDUMP_EXCLUDE_CACHE": uint64(ExcludeCache),
	"LIVEDUMP_EXCLUDE_CACHE_PRIVATE": uint64(ExcludeCachePrivate),
	"LIVEDUMP_EXCLUDE_USER":          uint64(ExcludeUser), "LIVEDUMP_EXCLUDE_FREE": uint64(ExcludeFree),
	"LIVEDUMP_EXCLUDE_ALL":   uint64(ExcludeAll),
	"LIVEDUMP_CLASS_UNKNOWN": uint64(ClassUnknown), "LIVEDUMP_CLASS_KERNEL": uint64(ClassKernel),
	"LIVEDUMP_CLASS_CACHE": uint64(ClassCache), "LIVEDUMP_CLASS_CACHE_PRIVATE": uint64(ClassCachePrivate),
	"LIVEDUMP_CLASS_USER": uint64(ClassUser), "LIVEDUMP_CLASS_HUGETLB": uint64(ClassHugetlb),
	"LIVEDUMP_CLASS_FREE": uint64(ClassFree), "LIVEDUMP_CLASS_OFFLINE": uint64(ClassOffline),
	"LIVEDUMP_CLASS_HWPOISON": uint64(ClassHwpoison), "LIVEDUMP_CLASS_SELF": uint64(ClassSelf),
	"LIVEDUMP_CLASS_UNMAPPED": uint64(ClassUnmapped), "LIVEDUMP_NR_CLASSES": uint64(NumClasses),
	"LIVEDUMP_MODE_STRICT": uint64(Strict), "LIVEDUMP_MODE_BEST_EFFORT": uint64(BestEffort),
	"LIVEDUMP_STATE_IDLE": uint64(StateIdle), "LIVEDUMP_STATE_PREPARED": uint64(StatePrepared),
	"LIVEDUMP_STATE_FROZEN": uint64(StateFrozen), "LIVEDUMP_STATE_THAWED": uint64(StateThawed),
	"LIVEDUMP_FAILURE_NONE": uint64(FailureNone), "LIVEDUMP_FAILURE_RESERVE": uint64(FailureReserve),
	"LIVEDUMP_FAILURE_DEADLINE": uint64(FailureDeadline), "LIVEDUMP_FAILURE_REBOOT": uint64(FailureReboot),
	"LIVEDUMP_IOC_TAKEOVER": uint64(iocTakeover),
	"LIVEDUMP_REFUSAL_NONE": uint64(RefusalNone), "LIVEDUMP_REFUSAL_SESSION": uint64(RefusalSession),
	"LIVEDUMP_REFUSAL_SUSPEND": uint64(RefusalSuspend), "LIVEDUMP_REFUSAL_MEMORY_HOTPLUG": uint64(RefusalMemoryHotplug),
	"LIVEDUMP_REFUSAL_LOCKDOWN": uint64(RefusalLockdown), "LIVEDUMP_REFUSAL_XEN_PV": uint64(RefusalXenPV),
	"LIVEDUMP_REFUSAL_TRACEPOINT": uint64(RefusalTracepoint), "LIVEDUMP_REFUSAL_ENTRY_BITS": uint64(RefusalEntryBits),
	"LIVEDUMP_REFUSAL_STACKS": uint64(RefusalStacks), "LIVEDUMP_REFUSAL_LAYOUT": uint64(RefusalLayout),
	"LIVEDUMP_REFUSAL_VMCOREINFO": uint64(RefusalVMCoreInfo), "LIVEDUMP_REFUSAL_TSC": uint64(RefusalTSC),
	"LIVEDUMP_REFUSAL_MEMORY": uint64(RefusalMemory), "LIVEDUMP_REFUSAL_SHUTDOWN": uint64(RefusalShutdown),
	"LIVEDUMP_PAGE_COPY": uint64(PageCopy), "LIVEDUMP_PAGE_LOST": uint64(PageLost),
	"LIVEDUMP_PAGE_UNCOVERED": uint64(PageUncovered), "LIVEDUMP_PAGE_TABLE": uint64(PageTable),
	"LIVEDUMP_UNWATCHED_MAPPINGS": uint64(UnwatchedMappings), "LIVEDUMP_UNWATCHED_CODE": uint64(UnwatchedCode),
	"LIVEDUMP_UNWATCHED_ATTRIBUTES": uint64(UnwatchedAttributes), "LIVEDUMP_UNWATCHED_DMA": uint64(UnwatchedDMA),
	"LIVEDUMP_UNWATCHED_PROGRAMS": uint64(UnwatchedPrograms),
}

// TestABI compiles the module's header and compares what the C compiler makes of it with the Go side.
func TestABI(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler (cc) to compile the module's header with")
	}
	header, err := filepath.Abs("../../kmod/include/uapi/livedump.h")
	if err != nil {
		t.Fatal(err)
	}
	headerText, err := os.ReadFile(header)
	if err != nil {
		t.Fatal(err)
	}

	want := map[string]uint64{} // by the Go side
	var src bytes.Buffer
	src.WriteString("#include <stddef.h>\n#include <stdio.h>\n#include \"" + header + "\"\n")
	src.WriteString("#define P(name, value) printf(\"%s %llu\\n\", name, (unsigned long long)(value))\n")
	src.WriteString("int main(void)\n{\n")
	for _, s := range abiStructs {
		fmt.Fprintf(&src, "P(\"sizeof:%s\", sizeof(struct %s));\n", s.cName, s.cName)
		if len(s.fields) != s.goType.NumField() {
			t.Errorf("%s: %d fields compared, Go has %d", s.cName, len(s.fields), s.goType.NumField())
		}
		want["sizeof:"+s.cName] = uint64(s.goType.Size())
		for _, f := range s.fields {
			gf, ok := s.goType.FieldByName(f.goName)
			if !ok {
				t.Fatalf("%s has no field %s", s.goType, f.goName)
			}
			key := s.cName + "." + f.cName
			want["offset:"+key] = uint64(gf.Offset)
			want["size:"+key] = uint64(gf.Type.Size())
			fmt.Fprintf(&src, "P(\"offset:%s\", offsetof(struct %s, %s));\n", key, s.cName, f.cName)
			fmt.Fprintf(&src, "P(\"size:%s\", sizeof(((struct %s *)0)->%s));\n", key, s.cName, f.cName)
		}
	}
	for name, value := range abiNumbers {
		want[name] = value
		fmt.Fprintf(&src, "P(\"%s\", %s);\n", name, name)
	}
	src.WriteString("return 0;\n}\n")

	dir := t.TempDir()
	cFile, bin := filepath.Join(dir, "abi.c"), filepath.Join(dir, "abi")
	if err := os.WriteFile(cFile, src.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(cc, "-Wall", "-Werror", "-o", bin, cFile).CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		t.Fatal(err)
	}

	seen := 0
	scanner := bufio.NewScanner(bytes.NewReader(out))
	for scanner.Scan() {
		name, text, _ := strings.Cut(scanner.Text(), " ")
		got, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("%q: %v", scanner.Text(), err)
		}
		if got != want[name] {
			t.Errorf("%s: C says %d, Go says %d", name, got, want[name])
		}
		seen++
	}
	if seen != len(want) {
		t.Errorf("compared %d values, want %d", seen, len(want))
	}

	if !strings.Contains(string(headerText), `"`+VMCoreDevice+`"`) {
		t.Errorf("the header does not name the device %s", VMCoreDevice)
	}

	// A structure, constant or ioctl added to the header must be added here too.
	for _, line := range strings.Split(string(headerText), "\n") {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "#define "); ok {
			name = strings.FieldsFunc(name, func(r rune) bool { return r == ' ' || r == '\t' || r == '(' })[0]
			if _, known := abiNumbers[name]; !known && name != "_UAPI_LIVEDUMP_H" && name != "LIVEDUMP_DEVICE" &&
				name != "LIVEDUMP_VMCORE_DEVICE" &&
				name != "LIVEDUMP_IOC_MAGIC" {
				t.Errorf("the header defines %s, which is not compared", name)
			}
		}
		if name, ok := strings.CutPrefix(line, "LIVEDUMP_"); ok && strings.Contains(name, "=") {
			name = "LIVEDUMP_" + strings.TrimSpace(strings.SplitN(name, "=", 2)[0])
			if _, known := abiNumbers[name]; !known {
				t.Errorf("the header has %s, which is not compared", name)
			}
		}
	}
}
