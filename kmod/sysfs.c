// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/class/misc/livedump: state and statistics of the session, one value a file (see
 * docs/kmod.md).  They are read without the session's lock, which a step may hold for long:
 * what hangs must be possible to look at.  So values read one after the other need not
 * be of the same instant.
 */
#include <linux/device.h>
#include <linux/kernel.h>
#include <linux/sysfs.h>
#include "compat.h"
#include "livedump.h"

static const char * const state_names[] = {
	[LIVEDUMP_STATE_IDLE]		= "idle",
	[LIVEDUMP_STATE_PREPARED]	= "prepared",
	[LIVEDUMP_STATE_FROZEN]		= "frozen",
	[LIVEDUMP_STATE_THAWED]		= "thawed",
};

static ssize_t state_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct livedump_stats st;

	ld_session_peek(&st, NULL);
	if (st.state < ARRAY_SIZE(state_names))
		return sysfs_emit(buf, "%s\n", state_names[st.state]);
	return sysfs_emit(buf, "%u\n", st.state);
}
static DEVICE_ATTR_RO(state);

static ssize_t uuid_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct livedump_stats st;
	u8 uuid[16];

	ld_session_peek(&st, uuid);
	return sysfs_emit(buf, "%pUb\n", uuid);
}
static DEVICE_ATTR_RO(uuid);

/* enum livedump_failure */
static ssize_t failure_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct livedump_stats st;

	ld_session_peek(&st, NULL);
	return sysfs_emit(buf, "%u\n", st.failure);
}
static DEVICE_ATTR_RO(failure);

static struct attribute *session_attrs[] = {
	&dev_attr_state.attr, &dev_attr_uuid.attr, &dev_attr_failure.attr, NULL
};
static const struct attribute_group session_group = { .attrs = session_attrs };

/* A number of livedump_stats. */
struct ld_stat_attr {
	struct device_attribute attr;
	size_t offset, size;
};

static ssize_t show_stat(struct device *dev, struct device_attribute *attr, char *buf)
{
	const struct ld_stat_attr *a = container_of(attr, struct ld_stat_attr, attr);
	struct livedump_stats st;
	const void *field = (const void *)&st + a->offset;

	ld_session_peek(&st, NULL);
	return sysfs_emit(buf, "%llu\n", a->size == sizeof(u32) ? *(const u32 *)field :
								  *(const u64 *)field);
}

#define STAT(group, name, field) \
static struct ld_stat_attr group##_##name = { \
	.attr = __ATTR(name, 0444, show_stat, NULL), \
	.offset = offsetof(struct livedump_stats, field), \
	.size = sizeof_field(struct livedump_stats, field), \
}

STAT(stop, attempts, stop_attempts);
STAT(stop, total_ns, stop_ns);
STAT(stop, rendezvous_ns, rendezvous_ns);
STAT(stop, copies_ns, copies_ns);
STAT(stop, entries_ns, entries_ns);
STAT(stop, flush_ns, flush_ns);
STAT(stop, entries_1g, entries_pud);
STAT(stop, entries_2m, entries_pmd);
STAT(stop, entries_4k, entries_pte);
STAT(stop, copies, stop_copies);

static struct attribute *stop_attrs[] = {
	&stop_attempts.attr.attr, &stop_total_ns.attr.attr, &stop_rendezvous_ns.attr.attr,
	&stop_copies_ns.attr.attr, &stop_entries_ns.attr.attr, &stop_flush_ns.attr.attr,
	&stop_entries_1g.attr.attr, &stop_entries_2m.attr.attr, &stop_entries_4k.attr.attr,
	&stop_copies.attr.attr, NULL
};
static const struct attribute_group stop_group = { .name = "stop", .attrs = stop_attrs };

STAT(statistics, faults, faults);
STAT(statistics, fault_copies, fault_copies);
STAT(statistics, fault_pushdowns, fault_pushdowns);
STAT(statistics, fault_splits, fault_splits);
STAT(statistics, fault_excluded, fault_excluded);
STAT(statistics, copies, copies);
STAT(statistics, lost, lost_pages);
STAT(statistics, uncovered, uncovered_pages);
STAT(statistics, pages_to_dump, pages_to_dump);
STAT(statistics, pages_reported, pages_reported);
STAT(statistics, tables_split, tables_split);
STAT(statistics, tables_joined, tables_joined);
STAT(statistics, thaw_ns, thaw_ns);

static ssize_t fault_leaves_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lld\n", (s64)atomic64_read(&ld_counters.fault_leaves));
}
static DEVICE_ATTR_RO(fault_leaves);

static ssize_t lost_by_writer_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lld\n", (s64)atomic64_read(&ld_counters.lost_writer));
}
static DEVICE_ATTR_RO(lost_by_writer);

static struct attribute *statistics_attrs[] = {
	&statistics_faults.attr.attr, &statistics_fault_copies.attr.attr,
	&statistics_fault_pushdowns.attr.attr, &statistics_fault_splits.attr.attr,
	&statistics_fault_excluded.attr.attr, &statistics_copies.attr.attr,
	&statistics_lost.attr.attr, &statistics_uncovered.attr.attr,
	&statistics_pages_to_dump.attr.attr, &statistics_pages_reported.attr.attr,
	&statistics_tables_split.attr.attr, &statistics_tables_joined.attr.attr,
	&statistics_thaw_ns.attr.attr, &dev_attr_fault_leaves.attr,
	&dev_attr_lost_by_writer.attr, NULL
};
static const struct attribute_group statistics_group = {
	.name = "statistics", .attrs = statistics_attrs
};

STAT(reserve, pages, reserve_pages);
STAT(reserve, low, reserve_low);

static ssize_t free_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", ld_reserve_free());
}
static DEVICE_ATTR_RO(free);

static ssize_t emergency_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct ld_reserve_layout l;

	ld_reserve_get_layout(&l);
	return sysfs_emit(buf, "%u\n", l.emergency);
}
static DEVICE_ATTR_RO(emergency);

static ssize_t tables_1g_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct ld_reserve_layout l;

	ld_reserve_get_layout(&l);
	return sysfs_emit(buf, "%u\n", l.tables_1g);
}
static DEVICE_ATTR_RO(tables_1g);

static ssize_t emergency_drawn_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lld\n", (s64)atomic64_read(&ld_counters.emergency));
}
static DEVICE_ATTR_RO(emergency_drawn);

static ssize_t blocks_1g_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct ld_reserve_layout l;

	ld_reserve_get_layout(&l);
	return sysfs_emit(buf, "%u\n", l.gigabytes);
}
static DEVICE_ATTR_RO(blocks_1g);

static ssize_t blocks_2m_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct ld_reserve_layout l;

	ld_reserve_get_layout(&l);
	return sysfs_emit(buf, "%u\n", l.leaves);
}
static DEVICE_ATTR_RO(blocks_2m);

static struct attribute *reserve_attrs[] = {
	&reserve_pages.attr.attr, &reserve_low.attr.attr, &dev_attr_free.attr,
	&dev_attr_emergency.attr, &dev_attr_emergency_drawn.attr, &dev_attr_tables_1g.attr,
	&dev_attr_blocks_1g.attr, &dev_attr_blocks_2m.attr, NULL
};
static const struct attribute_group reserve_group = { .name = "reserve", .attrs = reserve_attrs };

/* A number of struct ld_calibration. */
static ssize_t show_calibration(struct device *dev, struct device_attribute *attr, char *buf)
{
	const struct ld_stat_attr *a = container_of(attr, struct ld_stat_attr, attr);
	struct ld_calibration c;

	ld_calibrate_get(&c);
	return sysfs_emit(buf, "%llu\n", *(const u64 *)((const void *)&c + a->offset));
}

#define CALIBRATION(name, field) \
static struct ld_stat_attr calibration_##name = { \
	.attr = __ATTR(name, 0444, show_calibration, NULL), \
	.offset = offsetof(struct ld_calibration, field), \
}

CALIBRATION(window_ns, window_ns);
CALIBRATION(stop_ns, stop_ns);
CALIBRATION(pages, pages);
CALIBRATION(half_pages, half_pages);
CALIBRATION(stop_copies, stop_copies);
CALIBRATION(estimate, estimate);
CALIBRATION(kernel_per_second, per_second[LIVEDUMP_CLASS_KERNEL]);
CALIBRATION(cache_per_second, per_second[LIVEDUMP_CLASS_CACHE]);
CALIBRATION(cache_private_per_second, per_second[LIVEDUMP_CLASS_CACHE_PRIVATE]);
CALIBRATION(user_per_second, per_second[LIVEDUMP_CLASS_USER]);
CALIBRATION(hugetlb_per_second, per_second[LIVEDUMP_CLASS_HUGETLB]);
CALIBRATION(free_per_second, per_second[LIVEDUMP_CLASS_FREE]);

static struct attribute *calibration_attrs[] = {
	&calibration_window_ns.attr.attr, &calibration_stop_ns.attr.attr,
	&calibration_pages.attr.attr, &calibration_half_pages.attr.attr,
	&calibration_stop_copies.attr.attr, &calibration_estimate.attr.attr,
	&calibration_kernel_per_second.attr.attr, &calibration_cache_per_second.attr.attr,
	&calibration_cache_private_per_second.attr.attr, &calibration_user_per_second.attr.attr,
	&calibration_hugetlb_per_second.attr.attr, &calibration_free_per_second.attr.attr, NULL
};
static const struct attribute_group calibration_group = {
	.name = "calibration", .attrs = calibration_attrs
};

/* A number of struct ld_dma_found. */
static ssize_t show_dma(struct device *dev, struct device_attribute *attr, char *buf)
{
	const struct ld_stat_attr *a = container_of(attr, struct ld_stat_attr, attr);

	return sysfs_emit(buf, "%llu\n", *(const u64 *)((const void *)&ld_dma_found + a->offset));
}

#define DMA(name, field) \
static struct ld_stat_attr dma_##name = { \
	.attr = __ATTR(name, 0444, show_dma, NULL), \
	.offset = offsetof(struct ld_dma_found, field), \
}

DMA(buffers, buffers);
DMA(mapped, mapped);
DMA(handed, handed);
DMA(devices, devices);
DMA(devices_unknown, unknown);

static ssize_t page_pool_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lld\n", (s64)atomic64_read(&ld_counters.page_pool));
}
static DEVICE_ATTR_RO(page_pool);

static struct attribute *dma_attrs[] = {
	&dma_buffers.attr.attr, &dma_mapped.attr.attr, &dma_handed.attr.attr,
	&dma_devices.attr.attr, &dma_devices_unknown.attr.attr, &dev_attr_page_pool.attr, NULL
};
static const struct attribute_group dma_group = { .name = "dma", .attrs = dma_attrs };

/* The driver core adds and removes them with the device, so that udev sees all of them. */
const struct attribute_group *ld_sysfs_groups[] = {
	&session_group, &stop_group, &statistics_group, &reserve_group, &calibration_group,
	&dma_group, NULL
};
