// SPDX-License-Identifier: GPL-2.0-only
/*
 * ELF notes of the dump: NT_PRSTATUS of every CPU as of the stop, VMCOREINFO.
 *
 * The registers are those of the interrupted context: what an NMI was given, or, for an
 * interrupt, found by unwinding from its handler to the first register frame.  So what holds
 * a CPU in the stop is not part of what the CPU "was doing".  For the leader they are those of
 * the system call's frame that called into the module.
 */
#include <linux/elf.h>
#include <linux/elfcore.h>
#include <linux/crash_core.h>
#include <linux/percpu.h>
#include <linux/vmalloc.h>
#include <linux/kexec.h>
#include <asm/unwind.h>
#include "compat.h"
#include "livedump.h"

#define CORE_NAME	"CORE"
#define INFO_NAME	"VMCOREINFO"
#define INFO_MAX	SZ_64K

static struct pt_regs *cpu_regs;	/* by CPU, from vmalloc */
static cpumask_t captured;
static char *info;
static size_t info_len;

static void copy_partial(struct pt_regs *dst, struct unwind_state *s)
{
	memset(dst, 0, sizeof(*dst));
	dst->ip = unwind_get_return_address(s);
#ifdef CONFIG_UNWINDER_ORC
	dst->sp = s->sp;
	dst->bp = s->bp;
#endif
	dst->cs = __KERNEL_CS;
	dst->ss = __KERNEL_DS;
	dst->flags = X86_EFLAGS_FIXED;
}

/* An attempt at the stop begins: who came in an earlier one may be offline by now. */
void ld_notes_begin(void)
{
	cpumask_clear(&captured);
}

/* regs: the interrupted context, if it is known.  Interrupt or NMI context. */
void ld_notes_capture_interrupted(int cpu, const struct pt_regs *regs)
{
	struct unwind_state s;

	if (regs) {
		cpu_regs[cpu] = *regs;
		cpumask_set_cpu(cpu, &captured);
		return;
	}
	for (unwind_start(&s, current, NULL, NULL); !unwind_done(&s); unwind_next_frame(&s)) {
		bool partial = false;
		const struct pt_regs *entry = unwind_get_entry_regs(&s, &partial);

		if (entry && !partial) {
			cpu_regs[cpu] = *entry;
			cpumask_set_cpu(cpu, &captured);
			return;
		}
	}
	/* No register frame found: our own frame is better than none. */
	crash_setup_regs(&cpu_regs[cpu], NULL);
	cpumask_set_cpu(cpu, &captured);
}

/* caller: the return address in the frame that called into the module */
void ld_notes_capture_caller(int cpu, unsigned long caller)
{
	struct unwind_state s;

	cpumask_set_cpu(cpu, &captured);
	for (unwind_start(&s, current, NULL, NULL); !unwind_done(&s); unwind_next_frame(&s)) {
		if (unwind_get_return_address(&s) == caller) {
			copy_partial(&cpu_regs[cpu], &s);
			return;
		}
	}
	crash_setup_regs(&cpu_regs[cpu], NULL);
}

/*
 * The kernel's own note, less CRASHTIME: there was no crash, and readers take it for a sign
 * that registers are to be found elsewhere.
 */
static void copy_vmcoreinfo(void)
{
	const struct elf64_note *note = __va(paddr_vmcoreinfo_note());
	const char *src = (const char *)(note + 1) + round_up(note->n_namesz, 4);
	size_t len = min_t(size_t, note->n_descsz, INFO_MAX);
	size_t pos = 0;

	info_len = 0;
	while (pos < len && src[pos]) {
		const char *nl = memchr(src + pos, '\n', len - pos);
		size_t line = nl ? nl + 1 - (src + pos) : len - pos;

		if (strncmp(src + pos, "CRASHTIME=", 10)) {
			memcpy(info + info_len, src + pos, line);
			info_len += line;
		}
		pos += line;
	}
}

int ld_notes_prepare(void)
{
	cpumask_clear(&captured);
	cpu_regs = ld_zalloc(array_size(nr_cpu_ids, sizeof(*cpu_regs)));
	info = ld_zalloc(INFO_MAX);
	if (!cpu_regs || !info)
		return -ENOMEM;
	copy_vmcoreinfo();
	if (!info_len || ld_pretend(LIVEDUMP_REFUSAL_VMCOREINFO)) {
		pr_err("this kernel has no VMCOREINFO\n");
		return ld_refuse(LIVEDUMP_REFUSAL_VMCOREINFO, -EOPNOTSUPP);
	}
	return 0;
}

void ld_notes_release(void)
{
	vfree(cpu_regs);
	vfree(info);
	cpu_regs = NULL;
	info = NULL;
}

const struct pt_regs *ld_notes_regs(int cpu)
{
	return &cpu_regs[cpu];
}

static size_t note_bytes(size_t name, size_t desc)
{
	return sizeof(struct elf64_note) + round_up(name, 4) + round_up(desc, 4);
}

unsigned int ld_notes_cpus(void)
{
	return cpumask_weight(&captured);
}

size_t ld_notes_bytes(void)
{
	return ld_notes_cpus() * note_bytes(sizeof(CORE_NAME), sizeof(struct elf_prstatus)) +
	       note_bytes(sizeof(INFO_NAME), info_len);
}

/* The first registers of NT_PRSTATUS are those of pt_regs, in the same order. */
static_assert(sizeof(struct pt_regs) <= sizeof(((struct elf_prstatus *)0)->pr_reg));

static char *put_note(char *p, const char *name, size_t name_len, u32 type,
		      const void *desc, size_t desc_len)
{
	struct elf64_note *n = (struct elf64_note *)p;

	n->n_namesz = name_len;
	n->n_descsz = desc_len;
	n->n_type = type;
	p = (char *)(n + 1);
	memcpy(p, name, name_len);
	p += round_up(name_len, 4);
	memcpy(p, desc, desc_len);
	return p + round_up(desc_len, 4);
}

/* buf is zeroed and has room bytes; info_offset and info_bytes tell where the text lies in it. */
ssize_t ld_notes_fill(void *buf, size_t room, u64 *info_offset, u64 *info_bytes)
{
	char *p = buf;
	int cpu;

	if (room < ld_notes_bytes())
		return -ENOSPC;
	for_each_cpu(cpu, &captured) {
		struct elf_prstatus ps;

		memset(&ps, 0, sizeof(ps));
		ld_prstatus_pid(&ps) = cpu + 1;		/* how readers tell the CPU */
		memcpy(&ps.pr_reg, &cpu_regs[cpu], sizeof(struct pt_regs));
		p = put_note(p, CORE_NAME, sizeof(CORE_NAME), NT_PRSTATUS, &ps, sizeof(ps));
	}
	*info_offset = p + sizeof(struct elf64_note) + round_up(sizeof(INFO_NAME), 4) - (char *)buf;
	*info_bytes = info_len;
	p = put_note(p, INFO_NAME, sizeof(INFO_NAME), 0, info, info_len);
	return p - (char *)buf;
}
