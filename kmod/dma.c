// SPDX-License-Identifier: GPL-2.0-only
/*
 * What devices may write by DMA after the stop, as far as the kernel's memory tells it.  No page
 * table of the processor stands between a device and memory, so such a page is not kept: it is
 * flagged as uncovered.
 *
 *	page_pool	buffers of network drivers, told by their struct pages (classify.c)
 *	virtio		what the rings show as of the stop: every buffer that a device may write
 *			and has not given back.  The parts of the rings that devices write
 *			themselves are copied in the stop, so that a ring is whole in the dump
 *	IOMMU		what it lets devices write, by its own tables (vtd.c)
 *	clock page	of the hypervisor (KVM)
 *
 * What is handed to a device after the stop is saved before that: handed.c.
 *
 * A device that masters the bus and is none of these could write anything, and nobody keeps a
 * record of what its driver has given to it.  Such devices are counted.
 *
 * Devices are found before the stop, with the kernel's iterators, which hold spinlocks for a few
 * instructions.  The lock of a device is only tried: a driver that hangs holds it, and then
 * the device counts as not known.  After the stop rings are read as of the stop, without a
 * look at what drivers do with them meanwhile.  A device that comes or goes between the
 * two is not noticed.
 */
#include <linux/device.h>
#include <linux/iommu.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/sched.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>
#include <linux/vmalloc.h>
#include <asm/hypervisor.h>
#ifdef CONFIG_PARAVIRT_CLOCK
#include <asm/pvclock.h>
#endif
#include "compat.h"
#include "livedump.h"

#define RINGS_MAX	4096
#define ENTRIES_MAX	32768	/* of a ring, by the specification */

struct ld_ring {
	phys_addr_t desc, avail, used;	/* packed: ring, driver's event area, device's */
	unsigned int num;
	bool packed;
};

/* Of a ring's entry: how many entries before the newest its index was last seen; 0: not seen. */
struct ld_seen {
	u16 made_available, used;
};

static struct ld_ring *rings;
static unsigned int nr_rings;
static struct ld_seen *seen;
static unsigned int nr_unknown, nr_translated;

struct ld_dma_found ld_dma_found;

/* From virtio's module, if there is one: this module must not need it. */
static struct {
	dma_addr_t (*desc)(const struct virtqueue *vq);
	dma_addr_t (*avail)(const struct virtqueue *vq);
	dma_addr_t (*used)(const struct virtqueue *vq);
	unsigned int (*size)(const struct virtqueue *vq);
} virtio;

/* ---- which devices there are, before the stop ---- */

static void virtio_get(void)
{
	virtio.desc = (void *)symbol_get(virtqueue_get_desc_addr);
	virtio.avail = (void *)symbol_get(virtqueue_get_avail_addr);
	virtio.used = (void *)symbol_get(virtqueue_get_used_addr);
	virtio.size = (void *)symbol_get(virtqueue_get_vring_size);
}

static void virtio_put(void)
{
	if (virtio.desc)
		symbol_put(virtqueue_get_desc_addr);
	if (virtio.avail)
		symbol_put(virtqueue_get_avail_addr);
	if (virtio.used)
		symbol_put(virtqueue_get_used_addr);
	if (virtio.size)
		symbol_put(virtqueue_get_vring_size);
	memset(&virtio, 0, sizeof(virtio));
}

enum ld_dma_kind {
	DMA_UNKNOWN,
	DMA_KNOWN,
	DMA_TRANSLATED,		/* by an IOMMU: known if its tables are */
};

static bool translated(struct device *dev)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(dev);

	return domain && domain->type & __IOMMU_DOMAIN_PAGING;
}

static phys_addr_t to_phys(u64 bus_address)
{
	return bus_address & ~sme_me_mask;
}

static bool add_ring(const struct virtio_device *vdev, const struct virtqueue *vq)
{
	struct ld_ring *r = &rings[nr_rings];

	if (nr_rings >= RINGS_MAX)
		return false;
	r->num = virtio.size(vq);
	r->desc = to_phys(virtio.desc(vq));
	r->avail = to_phys(virtio.avail(vq));
	r->used = to_phys(virtio.used(vq));
	r->packed = __virtio_test_bit(vdev, VIRTIO_F_RING_PACKED);
	if (!r->num || r->num > ENTRIES_MAX)
		return false;
	nr_rings++;
	return true;
}

/* With the device locked, for then its driver does not take rings away. */
static bool add_rings(struct virtio_device *vdev)
{
	struct virtqueue *vq;
	bool all = true;

	if (!spin_trylock(&vdev->vqs_list_lock))
		return false;
	list_for_each_entry(vq, &vdev->vqs, list)
		all = add_ring(vdev, vq) && all;
	ld_spin_unlock_tried(&vdev->vqs_list_lock);
	return all;
}

static enum ld_dma_kind look_at_virtio(struct virtio_device *vdev)
{
	bool known;

	/* Its addresses are the IOMMU's: what that lets it write says all. */
	if (__virtio_test_bit(vdev, VIRTIO_F_ACCESS_PLATFORM) && translated(vdev->dev.parent))
		return DMA_TRANSLATED;
	if (!virtio.desc || !virtio.avail || !virtio.used || !virtio.size)
		return DMA_UNKNOWN;
	if (!device_trylock(&vdev->dev))
		return DMA_UNKNOWN;
	known = add_rings(vdev);
	device_unlock(&vdev->dev);
	/*
	 * A packed ring forgets a buffer that the device keeps for longer than others.  Network
	 * devices answer in order.
	 */
	if (__virtio_test_bit(vdev, VIRTIO_F_RING_PACKED) && vdev->id.device != VIRTIO_ID_NET)
		known = false;
	return known ? DMA_KNOWN : DMA_UNKNOWN;
}

/* Rings that others have made are elsewhere, and asking for their addresses is a BUG. */
static bool makes_rings(struct device *transport)
{
	struct device_driver *driver = READ_ONCE(transport->driver);

	return driver && (!strcmp(driver->name, "virtio-pci") || !strcmp(driver->name, "virtio-mmio"));
}

static int look_at_child(struct device *dev, void *arg)
{
	enum ld_dma_kind *kind = arg;

	if (!dev->bus || strcmp(dev->bus->name, "virtio") || !makes_rings(dev->parent))
		return 0;
	ld_dma_found.virtio = true;
	*kind = dev->driver ? look_at_virtio(dev_to_virtio(dev)) : DMA_KNOWN;
	return 1;
}

static void count_device(enum ld_dma_kind kind)
{
	ld_dma_found.devices++;
	nr_unknown += kind == DMA_UNKNOWN;
	nr_translated += kind == DMA_TRANSLATED;
}

static int look_at_pci(struct device *dev, void *arg)
{
	enum ld_dma_kind kind = DMA_UNKNOWN;
	struct pci_dev *pdev = to_pci_dev(dev);

	/* Bridges master the bus for others. */
	if (!pdev->is_busmaster || !dev->driver || pci_is_bridge(pdev))
		return 0;
	if (!device_for_each_child(dev, &kind, look_at_child) && translated(dev))
		kind = DMA_TRANSLATED;
	count_device(kind);
	return 0;
}

/* Of other than PCI devices only those of virtio are looked at. */
static int look_at_platform(struct device *dev, void *arg)
{
	enum ld_dma_kind kind = DMA_UNKNOWN;

	if (device_for_each_child(dev, &kind, look_at_child))
		count_device(kind);
	return 0;
}

/* Before each attempt to stop. */
void ld_dma_find(void)
{
	nr_rings = 0;
	nr_unknown = 0;
	nr_translated = 0;
	memset(&ld_dma_found, 0, sizeof(ld_dma_found));
	virtio_get();
	bus_for_each_dev(&pci_bus_type, NULL, NULL, look_at_pci);
	bus_for_each_dev(&platform_bus_type, NULL, NULL, look_at_platform);
	virtio_put();
	/* Their devices are on a bus of their own, and write what is shared with the host. */
	if (hypervisor_is_type(X86_HYPER_MS_HYPERV) || hypervisor_is_type(X86_HYPER_XEN_HVM))
		count_device(DMA_UNKNOWN);
}

static int tell_pages(phys_addr_t at, u64 bytes, int (*add)(unsigned long pfn))
{
	unsigned long pfn = at >> PAGE_SHIFT, last = (at + bytes - 1) >> PAGE_SHIFT;
	int err = 0;

	for (; pfn <= last && !err; pfn++)
		if (ld_page_is_ram(pfn))
			err = add(pfn);
	return err;
}

/* Tells the pages of rings that devices write. */
int ld_dma_add_rings(int (*add)(unsigned long pfn))
{
	unsigned int i;
	int err = 0;

	for (i = 0; i < nr_rings && !err; i++) {
		const struct ld_ring *r = &rings[i];

		if (r->packed) {
			err = tell_pages(r->desc, r->num * sizeof(struct vring_packed_desc), add);
			err = err ?: tell_pages(r->used, sizeof(struct vring_packed_desc_event), add);
		} else {
			err = tell_pages(r->used, offsetof(struct vring_used, ring[r->num]) +
						 sizeof(__virtio16), add);
		}
	}
	return err;
}

/* ---- what they may write, after the stop ---- */

/*
 * A device may write the page.  Whether it has a copy by now says nothing: the device may have
 * been first.  Counted if it is to be dumped.
 */
void ld_dma_uncover(unsigned long pfn, u64 *counted)
{
	if (!ld_page_is_ram(pfn))
		return;
	if (!ld_page_class(pfn))
		ld_page_set_class(pfn, ld_classify(pfn));
	if (!test_and_set_bit(pfn, ld_uncovered) && !ld_class_excluded(ld_page_class(pfn)))
		(*counted)++;
}

static void uncover(u64 at, u32 bytes)
{
	phys_addr_t start = to_phys(at);
	unsigned long pfn = start >> PAGE_SHIFT;
	unsigned long last = bytes ? (start + bytes - 1) >> PAGE_SHIFT : pfn;

	for (; pfn <= last && pfn < ld_max_pfn; pfn++)
		ld_dma_uncover(pfn, &ld_dma_found.buffers);
}

static bool read_phys(void *dst, phys_addr_t at, size_t n)
{
	return at >> PAGE_SHIFT < ld_max_pfn &&
	       ld_read_as_of_stop(dst, (unsigned long)__va(at), n);
}

#define DESC_FLAGS	(VRING_DESC_F_NEXT | VRING_DESC_F_WRITE)

/* Of a buffer that was given back the table may be freed and hold anything. */
static void look_at_table(u64 at, u32 bytes, bool packed)
{
	phys_addr_t table = to_phys(at);
	u32 i, n = min_t(u32, bytes / sizeof(struct vring_desc), ENTRIES_MAX);

	for (i = 0; i < n; i++) {
		struct vring_desc d;
		struct vring_packed_desc p;
		bool writes;

		static_assert(sizeof(d) == sizeof(p));
		if (!read_phys(&d, table + i * sizeof(d), sizeof(d)))
			return;
		memcpy(&p, &d, sizeof(p));
		writes = packed ? le16_to_cpu(p.flags) & VRING_DESC_F_WRITE :
				  (__force u16)d.flags & VRING_DESC_F_WRITE &&
				  !((__force u16)d.flags & ~DESC_FLAGS);
		if (writes)
			uncover((__force u64)d.addr, (__force u32)d.len);
	}
}

static bool read_desc(const struct ld_ring *r, unsigned int i, struct vring_desc *d)
{
	return read_phys(d, r->desc + i * sizeof(*d), sizeof(*d));
}

static void look_at_desc(const struct vring_desc *d)
{
	u16 flags = (__force u16)d->flags;

	if (flags & VRING_DESC_F_INDIRECT)
		look_at_table((__force u64)d->addr, (__force u32)d->len, false);
	else if (flags & VRING_DESC_F_WRITE)
		uncover((__force u64)d->addr, (__force u32)d->len);
}

/*
 * Has the device given the buffer of this index back?  Made available as the a-th, given back as
 * the u-th: it has if u is among the last entries of one ring, and all that came after u are
 * among those of the other, for an index is not made available again before.
 */
static bool is_done(const struct ld_ring *r, unsigned int i, u16 available, u16 used)
{
	u16 u = used - seen[i].used;
	u16 a = available - seen[i].made_available;

	if (!seen[i].used || (u16)(available - u - 1) > r->num)
		return false;
	return !seen[i].made_available || (s16)(a - u) <= 0;
}

static bool look_back(const struct ld_ring *r, u16 *available, u16 *used)
{
	const size_t a = offsetof(struct vring_avail, ring), u = offsetof(struct vring_used, ring);
	unsigned int back;

	if (!read_phys(available, r->avail + offsetof(struct vring_avail, idx), sizeof(u16)) ||
	    !read_phys(used, r->used + offsetof(struct vring_used, idx), sizeof(u16)))
		return false;
	memset(seen, 0, r->num * sizeof(*seen));
	for (back = 1; back <= r->num; back++) {
		unsigned int at = (u16)(*available - back) % r->num;
		__virtio16 head;
		__virtio32 id;

		if (!read_phys(&head, r->avail + a + at * sizeof(head), sizeof(head)))
			return false;
		at = (u16)(*used - back) % r->num;
		if (!read_phys(&id, r->used + u + at * sizeof(struct vring_used_elem), sizeof(id)))
			return false;
		if ((__force u16)head < r->num && !seen[(__force u16)head].made_available)
			seen[(__force u16)head].made_available = back;
		if ((__force u32)id < r->num && !seen[(__force u32)id].used)
			seen[(__force u32)id].used = back;
	}
	return true;
}

/*
 * All descriptors but those of buffers that were surely given back: a descriptor that is not in
 * use is not told from one that the device has kept for long.
 */
static bool look_at_split(const struct ld_ring *r)
{
	unsigned int i, j, steps;
	struct vring_desc d;
	u16 available, used;

	if (!look_back(r, &available, &used))
		return false;
	for (i = 0; i < r->num; i++) {
		if (is_done(r, i, available, used))
			continue;
		if (!read_desc(r, i, &d))
			return false;
		look_at_desc(&d);
		/* What follows it in its chain was perhaps the head of another one before. */
		for (steps = 0; steps < r->num; steps++) {
			if (!((__force u16)d.flags & VRING_DESC_F_NEXT))
				break;
			j = (__force u16)d.next;
			if (j >= r->num || !is_done(r, j, available, used))
				break;	/* not a chain (any more), or seen for itself */
			if (!read_desc(r, j, &d))
				return false;
			look_at_desc(&d);
		}
	}
	return true;
}

static bool look_at_packed(const struct ld_ring *r)
{
	struct vring_packed_desc p;
	unsigned int i;

	for (i = 0; i < r->num; i++) {
		if (!read_phys(&p, r->desc + i * sizeof(p), sizeof(p)))
			return false;
		if (le16_to_cpu(p.flags) & VRING_DESC_F_INDIRECT)
			look_at_table(le64_to_cpu(p.addr), le32_to_cpu(p.len), true);
		else if (le16_to_cpu(p.flags) & VRING_DESC_F_WRITE)
			uncover(le64_to_cpu(p.addr), le32_to_cpu(p.len));
	}
	return true;
}

/* A page that the hypervisor writes whenever it thinks fit. */
static void look_at_clock(void)
{
#ifdef CONFIG_PARAVIRT_CLOCK
	unsigned long va = (unsigned long)pvclock_get_pvti_cpu0_va();

	if (va)
		ld_dma_uncover(ld_va_to_pfn(va), &ld_dma_found.buffers);
#endif
}

/* After the stop, before pages are classified. */
void ld_dma_mark(void)
{
	unsigned int i;

	ld_dma_found.unknown = nr_unknown;
	if (!ld_vtd_mark(&ld_dma_found.mapped))
		ld_dma_found.unknown += nr_translated;
	for (i = 0; i < nr_rings; i++) {
		if (!(rings[i].packed ? look_at_packed(&rings[i]) : look_at_split(&rings[i])))
			ld_dma_found.unknown++;
		cond_resched();
	}
	look_at_clock();
}

int ld_dma_prepare(void)
{
	const size_t ring_bytes = RINGS_MAX * sizeof(*rings);
	const size_t seen_bytes = ENTRIES_MAX * sizeof(*seen);

	rings = ld_zalloc(ring_bytes);
	seen = ld_zalloc(seen_bytes);
	if (!rings || !seen)
		return -ENOMEM;
	ld_wp_add_own(rings, ring_bytes);
	ld_wp_add_own(seen, seen_bytes);
	return ld_vtd_prepare();
}

void ld_dma_release(void)
{
	ld_vtd_release();
	vfree(rings);
	vfree(seen);
	rings = NULL;
	seen = NULL;
	nr_rings = 0;
}
