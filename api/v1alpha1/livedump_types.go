// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ContentProfile names a set of page classes.
// +kubebuilder:validation:Enum=Kernel;Full
type ContentProfile string

const (
	// ContentKernel is kernel memory only: no user, page cache, free and zero pages (dump level 31).
	ContentKernel ContentProfile = "Kernel"
	// ContentFull is all of RAM but zero pages (dump level 1). Pages that user space or devices
	// write are not from the one instant; they are counted as uncovered.
	ContentFull ContentProfile = "Full"
)

// Consistency says what happens when the reserve is used up.
// +kubebuilder:validation:Enum=Strict;BestEffort
type Consistency string

const (
	// ConsistencyStrict fails the dump (reason ReserveExhausted).
	ConsistencyStrict Consistency = "Strict"
	// ConsistencyBestEffort goes on; the page is lost, counted and left out.
	ConsistencyBestEffort Consistency = "BestEffort"
)

// Compression of the dumped pages.
// +kubebuilder:validation:Enum=Zstd;Zlib;Snappy;None
type Compression string

// The codecs that crash, drgn and makedumpfile read.
const (
	CompressionZstd   Compression = "Zstd"
	CompressionZlib   Compression = "Zlib"
	CompressionSnappy Compression = "Snappy"
	CompressionNone   Compression = "None"
)

// Format of the dump.
// +kubebuilder:validation:Enum=Kdump;ELF;Flattened
type Format string

const (
	// FormatKdump is kdump-compressed, version 6: for claims.
	FormatKdump Format = "Kdump"
	// FormatELF is an ELF vmcore: without compression, in a file with holes, so only for claims with volumeMode Filesystem.
	FormatELF Format = "ELF"
	// FormatFlattened is kdump-compressed as a stream that "makedumpfile -R" and "livedump convert" make a plain dump of: for
	// streams, and for files.
	FormatFlattened Format = "Flattened"
)

// OverwritePolicy says what may be on the target before the first byte is written.
// +kubebuilder:validation:Enum=Never;IfEmptyOrLiveDump
type OverwritePolicy string

const (
	// OverwriteNever accepts only a target without any signature.
	OverwriteNever OverwritePolicy = "Never"
	// OverwriteIfEmptyOrLiveDump also accepts an earlier dump of livedump.
	OverwriteIfEmptyOrLiveDump OverwritePolicy = "IfEmptyOrLiveDump"
)

// DesiredState is what the user wants of the dump.
// +kubebuilder:validation:Enum=Run;Cancel
type DesiredState string

// A dump runs until it is canceled; a canceled one does not run again.
const (
	DesiredStateRun    DesiredState = "Run"
	DesiredStateCancel DesiredState = "Cancel"
)

// PersistentVolumeClaimTarget is a claim in the namespace of the LiveDump.
type PersistentVolumeClaimTarget struct {
	// claimName is the name of a claim. With volumeMode Block its device is written from the first byte on, with
	// volumeMode Filesystem the dump is a file.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="!format.dns1123Subdomain().validate(self).hasValue()",message="claimName must be a valid object name (lower-case letters, digits, '-' and '.')"
	ClaimName string `json:"claimName,omitempty"`

	// path of the file within the volume; only for a claim with volumeMode Filesystem. Its folder must exist. Unset:
	// the name of the LiveDump, for one of several claims with a dot and the name of the claim, with .kdump, .elf or .flat behind it.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9_][-A-Za-z0-9._]*(/[A-Za-z0-9_][-A-Za-z0-9._]*)*$') && !self.endsWith('.partial')",message="path must be relative, of names of letters, digits, '-', '_' and '.' that do not begin with '.' or '-', and not end with '.partial'"
	Path string `json:"path,omitempty"`
}

// StreamTLS says who the receiver must be.
type StreamTLS struct {
	// serverName that the receiver's certificate must have. Unset: the host of the address.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ServerName string `json:"serverName,omitempty"`
	// caBundle are certificates in PEM that the receiver's must come from. Unset: the public ones in the agent's image.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=65536
	// +kubebuilder:validation:XValidation:rule="self.startsWith('-----BEGIN CERTIFICATE-----')",message="caBundle must be certificates in PEM, beginning with -----BEGIN CERTIFICATE-----"
	CABundle string `json:"caBundle,omitempty"`
}

// StreamTarget is a "livedump receive" that listens somewhere. The dump is carried over TLS.
type StreamTarget struct {
	// address of the receiver, host:port.
	// +required
	// +kubebuilder:validation:MinLength=3
	// +kubebuilder:validation:MaxLength=261
	// +kubebuilder:validation:XValidation:rule="self.matches('^([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\\\\[[0-9a-fA-F:.]+\\\\]):[0-9]{1,5}$')",message="address must be host:port, as in receiver.example:9300 or [2001:db8::1]:9300"
	Address string `json:"address,omitempty"`
	// tls says who the receiver must be.
	// +optional
	TLS StreamTLS `json:"tls,omitzero"`
}

// Encryption says who can read the dump.
type Encryption struct {
	// recipients are public keys of age (age-keygen): age1..., or age1pq1... for post-quantum ones. Whoever has one of the private keys can
	// decrypt the dump. The private keys never get near the cluster.
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=62
	// +kubebuilder:validation:items:MaxLength=2048
	// +kubebuilder:validation:items:Pattern=`^age1[02-9ac-hj-np-z]{58}$|^age1pq1[02-9ac-hj-np-z]+$`
	Recipients []string `json:"recipients,omitempty"`
}

// Addressing says where the bucket's name goes in a request.
// +kubebuilder:validation:Enum=Auto;Path;VirtualHost
type Addressing string

const (
	// AddressingAuto is VirtualHost for Amazon, and Path for everybody else.
	AddressingAuto Addressing = "Auto"
	// AddressingPath puts the bucket into the path.
	AddressingPath Addressing = "Path"
	// AddressingVirtualHost puts it before the host.
	AddressingVirtualHost Addressing = "VirtualHost"
)

// ObjectStorageTarget is a bucket of a store that speaks S3.
type ObjectStorageTarget struct {
	// endpoint is the store's URL, without a path.
	// +required
	// +kubebuilder:validation:MinLength=9
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getScheme() == 'https' && url(self).getHostname() != '' && url(self).getEscapedPath() in ['', '/'] && size(url(self).getQuery()) == 0 && !self.contains('@')",message="endpoint must be https://HOST or https://HOST:PORT"
	Endpoint string `json:"endpoint,omitempty"`

	// region of the bucket.
	// +optional
	// +kubebuilder:default=us-east-1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9-]+$`
	Region string `json:"region,omitempty"`

	// bucket that the object is made in.
	// +required
	// +kubebuilder:validation:MinLength=3
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9][a-z0-9.-]*[a-z0-9]$`
	Bucket string `json:"bucket,omitempty"`

	// keyPrefix goes before the name of the object, which is that of the LiveDump and its UID.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9._/-]*$`
	KeyPrefix string `json:"keyPrefix,omitempty"`

	// credentialsSecretName is a Secret in the namespace of the LiveDump with accessKeyID, secretAccessKey and, if need
	// be, sessionToken and ca.crt (PEM, in place of the system's authorities).
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="!format.dns1123Subdomain().validate(self).hasValue()",message="credentialsSecretName must be a valid object name (lower-case letters, digits, '-' and '.')"
	CredentialsSecretName string `json:"credentialsSecretName,omitempty"`

	// addressing says where the bucket's name goes in a request.
	// +optional
	// +kubebuilder:default=Auto
	Addressing Addressing `json:"addressing,omitempty"`
}

// Target is where the dump goes. Exactly one member is set.
// +kubebuilder:validation:XValidation:rule="[has(self.persistentVolumeClaim), has(self.persistentVolumeClaims), has(self.objectStorage), has(self.stream)].exists_one(set, set)",message="exactly one target must be set: persistentVolumeClaim, persistentVolumeClaims, objectStorage or stream"
type Target struct {
	// persistentVolumeClaim is a volume of the node, raw or with a file system.
	// +optional
	PersistentVolumeClaim *PersistentVolumeClaimTarget `json:"persistentVolumeClaim,omitempty"`
	// persistentVolumeClaims are volumes of the node that the dump is split among, for a dump that none of them has the room
	// for: each takes the pages of a range of memory, in proportion to its room. Only all of them together are a dump.
	// +optional
	// +listType=map
	// +listMapKey=claimName
	// +kubebuilder:validation:MinItems=2
	// +kubebuilder:validation:MaxItems=16
	PersistentVolumeClaims []PersistentVolumeClaimTarget `json:"persistentVolumeClaims,omitempty"`
	// objectStorage is a bucket in which an object with the flattened stream of the dump is made.
	// +optional
	ObjectStorage *ObjectStorageTarget `json:"objectStorage,omitempty"`
	// stream sends the dump away while it is made. Nothing can be read back, so the result has the checksum of what was sent
	// and what the receiver has confirmed.
	// +optional
	Stream *StreamTarget `json:"stream,omitempty"`
}

// Content says what is dumped.
type Content struct {
	// profile names the page classes to dump.
	// +optional
	// +kubebuilder:default=Kernel
	Profile ContentProfile `json:"profile,omitempty"`
}

// Reserve limits the memory that holds copies while the node is frozen.
type Reserve struct {
	// limitBytes is the most that the session may allocate for copies and page tables, in bytes.
	// 0: a share of the node's free memory.
	// +optional
	// +kubebuilder:validation:Minimum=0
	LimitBytes int64 `json:"limitBytes,omitempty"`
}

// Limits of what a dump may use of the node.
type Limits struct {
	// bandwidth of writing to the target, bytes per second, as a quantity such as 200Mi. Memory stays frozen as long as it
	// is written, so a low limit takes a large reserve. Unset: no limit.
	// +optional
	// +kubebuilder:validation:XValidation:rule="quantity(string(self)).compareTo(quantity('1Mi')) >= 0",message="bandwidth must be at least 1Mi (bytes per second)"
	Bandwidth *resource.Quantity `json:"bandwidth,omitempty"`
	// cpus that the dump may keep busy. Unset: all that the agent may use.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4096
	CPUs int32 `json:"cpus,omitempty"`
}

// LiveDumpSpec is what the user asks for. It cannot be changed, but for desiredState from Run to Cancel.
// +kubebuilder:validation:XValidation:rule="has(self.reserve) == has(oldSelf.reserve) && (!has(self.reserve) || self.reserve == oldSelf.reserve)",fieldPath=".reserve",message="reserve is immutable: create another LiveDump"
// +kubebuilder:validation:XValidation:rule="has(self.ttlSecondsAfterFinished) == has(oldSelf.ttlSecondsAfterFinished) && (!has(self.ttlSecondsAfterFinished) || self.ttlSecondsAfterFinished == oldSelf.ttlSecondsAfterFinished)",fieldPath=".ttlSecondsAfterFinished",message="ttlSecondsAfterFinished is immutable: create another LiveDump"
// +kubebuilder:validation:XValidation:rule="has(self.encryption) == has(oldSelf.encryption) && (!has(self.encryption) || self.encryption == oldSelf.encryption)",fieldPath=".encryption",message="encryption is immutable: create another LiveDump"
// +kubebuilder:validation:XValidation:rule="has(self.format) == has(oldSelf.format) && (!has(self.format) || self.format == oldSelf.format)",fieldPath=".format",message="format is immutable: create another LiveDump"
// +kubebuilder:validation:XValidation:rule="has(self.limits) == has(oldSelf.limits) && (!has(self.limits) || self.limits == oldSelf.limits)",fieldPath=".limits",message="limits is immutable: create another LiveDump"
// +kubebuilder:validation:XValidation:rule="!has(self.format) || has(self.target.persistentVolumeClaim) || has(self.target.persistentVolumeClaims) || self.format == 'Flattened'",fieldPath=".format",message="a stream or an object takes bytes one after the other, so its format can only be Flattened"
// +kubebuilder:validation:XValidation:rule="!has(self.format) || !has(self.target.persistentVolumeClaims) || self.format == 'Kdump'",fieldPath=".format",message="a dump that is split among several claims can only have the format Kdump"
// +kubebuilder:validation:XValidation:rule="!has(self.encryption) || !has(self.format) || self.format == 'Kdump' || !has(self.target.persistentVolumeClaim)",fieldPath=".format",message="what is encrypted on a claim can only have the format Kdump"
type LiveDumpSpec struct {
	// nodeName is the node whose memory is dumped.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="!format.dns1123Subdomain().validate(self).hasValue()",message="nodeName must be a valid object name (lower-case letters, digits, '-' and '.')"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="nodeName is immutable: create another LiveDump"
	NodeName string `json:"nodeName,omitempty"`

	// target is where the dump goes.
	// +required
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="target is immutable: create another LiveDump"
	Target Target `json:"target,omitzero"`

	// content says which pages are dumped.
	// +optional
	// +kubebuilder:default={}
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="content is immutable: create another LiveDump"
	Content Content `json:"content,omitzero"`

	// consistency says what happens when the reserve is used up.
	// +optional
	// +kubebuilder:default=Strict
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="consistency is immutable: create another LiveDump"
	Consistency Consistency `json:"consistency,omitempty"`

	// compression of the pages.
	// +optional
	// +kubebuilder:default=Zstd
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="compression is immutable: create another LiveDump"
	Compression Compression `json:"compression,omitempty"`

	// encryption of the dump. Unset: it lies on the target in clear.
	// +optional
	Encryption *Encryption `json:"encryption,omitempty"`

	// format of the dump. Unset: Kdump for a claim, Flattened for a stream or an object.
	// +optional
	Format Format `json:"format,omitempty"`

	// limits of what the dump may use of the node.
	// +optional
	Limits *Limits `json:"limits,omitempty"`

	// reserve limits the memory used for copies.
	// +optional
	Reserve *Reserve `json:"reserve,omitempty"`

	// timeoutSeconds is the longest time from acceptance (status.startTime) to the end, in seconds.
	// Waiting for another LiveDump of the same node does not count.
	// +optional
	// +kubebuilder:default=1800
	// +kubebuilder:validation:Minimum=30
	// +kubebuilder:validation:Maximum=86400
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="timeoutSeconds is immutable: create another LiveDump"
	TimeoutSeconds int32 `json:"timeoutSeconds,omitempty"`

	// ttlSecondsAfterFinished deletes the LiveDump (never the data on the target) this long after its end, in seconds.
	// Unset: it stays.
	// +optional
	// +kubebuilder:validation:Minimum=0
	TTLSecondsAfterFinished *int32 `json:"ttlSecondsAfterFinished,omitempty"`

	// overwritePolicy says what may be on the target beforehand.
	// +optional
	// +kubebuilder:default=IfEmptyOrLiveDump
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="overwritePolicy is immutable: create another LiveDump"
	OverwritePolicy OverwritePolicy `json:"overwritePolicy,omitempty"`

	// desiredState is Run, or Cancel to end the dump early.
	// +optional
	// +kubebuilder:default=Run
	// +kubebuilder:validation:XValidation:rule="self == oldSelf || self == 'Cancel'",message="a canceled LiveDump cannot run again: create another LiveDump"
	DesiredState DesiredState `json:"desiredState,omitempty"`
}

// NodeIdentity is the node as it was when the dump was accepted.
type NodeIdentity struct {
	// bootID of the node; another one later means that it was rebooted.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	BootID string `json:"bootID,omitempty"`
	// kernelRelease is uname -r of the node.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	KernelRelease string `json:"kernelRelease,omitempty"`
}

// TargetStatus is what the controller found for the target and hands to the agent.
type TargetStatus struct {
	// persistentVolumeName is the volume bound to the claim.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	PersistentVolumeName string `json:"persistentVolumeName,omitempty"`
	// capacityBytes of the volume, in bytes.
	// +optional
	CapacityBytes int64 `json:"capacityBytes,omitempty"`
	// volumeMode of the claim: Block or Filesystem.
	// +optional
	// +kubebuilder:validation:Enum=Block;Filesystem
	VolumeMode string `json:"volumeMode,omitempty"`
	// holderPodUID is the UID of the pod that keeps the claim attached to the node.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	HolderPodUID string `json:"holderPodUID,omitempty"`
	// localPath is the device's path on the node, from a volume of kind local. It is set when the
	// node's kubelet has not started the holder, and the agent then goes by it.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	LocalPath string `json:"localPath,omitempty"`
	// claims is what was found for each of persistentVolumeClaims; the fields for one claim are empty then, and the holder
	// has all of them.
	// +optional
	// +listType=map
	// +listMapKey=claimName
	// +kubebuilder:validation:MaxItems=16
	Claims []ClaimStatus `json:"claims,omitempty"`
}

// ClaimStatus is what the controller found for one of several claims.
type ClaimStatus struct {
	// claimName is the name of the claim.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ClaimName string `json:"claimName,omitempty"`
	// persistentVolumeName is the volume bound to the claim.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	PersistentVolumeName string `json:"persistentVolumeName,omitempty"`
	// capacityBytes of the volume, in bytes.
	// +required
	CapacityBytes int64 `json:"capacityBytes"`
	// volumeMode of the claim: Block or Filesystem.
	// +required
	// +kubebuilder:validation:Enum=Block;Filesystem
	VolumeMode string `json:"volumeMode,omitempty"`
	// localPath is the device's path on the node, as status.target.localPath is for one claim. It is set for all claims or for
	// none.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	LocalPath string `json:"localPath,omitempty"`
}

// Progress of a running dump, written at most once a second.
type Progress struct {
	// pagesTotal to be dumped, known after the freeze.
	// +optional
	PagesTotal int64 `json:"pagesTotal,omitempty"`
	// pagesWritten so far.
	// +optional
	PagesWritten int64 `json:"pagesWritten,omitempty"`
	// bytesWritten to the target so far.
	// +optional
	BytesWritten int64 `json:"bytesWritten,omitempty"`
	// percent of pagesTotal.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Percent int32 `json:"percent,omitempty"`
	// lastUpdateTime of this record.
	// +optional
	LastUpdateTime metav1.Time `json:"lastUpdateTime,omitzero"`
}

// PageClassCount is the number of pages of one class as of the stop.
type PageClassCount struct {
	// class as in the module.
	// +required
	// +kubebuilder:validation:Enum=Kernel;Cache;CachePrivate;User;Hugetlb;Free;Offline;Hwpoison;Self;Unmapped
	Class string `json:"class,omitempty"`
	// pages of this class.
	// +required
	Pages int64 `json:"pages"`
	// disposition says whether the class is in the dump.
	// +optional
	// +kubebuilder:validation:Enum=Dumped;Excluded
	Disposition string `json:"disposition,omitempty"`
}

// Step of a dump, as the agent goes through them.
// +kubebuilder:validation:Enum=CheckingTarget;LoadingModule;Preparing;Freezing;Writing;Thawing;Finishing;Verifying
type Step string

// The steps in their order.
const (
	StepTarget  Step = "CheckingTarget"
	StepModule  Step = "LoadingModule"
	StepPrepare Step = "Preparing"
	StepFreeze  Step = "Freezing"
	StepWrite   Step = "Writing"
	StepThaw    Step = "Thawing"
	StepFinish  Step = "Finishing"
	StepVerify  Step = "Verifying"
)

// StepDuration is how long the agent took for one step of a dump.
type StepDuration struct {
	// name of the step.
	// +required
	Name Step `json:"name,omitempty"`
	// milliseconds that it took.
	// +required
	Milliseconds int64 `json:"milliseconds"`
}

// ReserveUse is what the session needed of its reserve, in pages.
type ReserveUse struct {
	// pages that the reserve had.
	// +required
	Pages int64 `json:"pages"`
	// usedPages is the most that was in use at any time.
	// +required
	UsedPages int64 `json:"usedPages"`
}

// PartResult is the part of a split dump that lies on one claim.
type PartResult struct {
	// claimName is the claim that has the part.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ClaimName string `json:"claimName,omitempty"`
	// sizeBytes of the part, from the first byte of the device or file on.
	// +required
	SizeBytes int64 `json:"sizeBytes"`
	// sha256 of these bytes, read back from the target, in hex.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	SHA256 string `json:"sha256,omitempty"`
	// device identifies what holds the part: a block device, or a file in the volume.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Device string `json:"device,omitempty"`
}

// Result of a finished dump. All numbers were measured.
type Result struct {
	// format of the dump: "kdump-compressed v6", "kdump-compressed v6, flattened" or "ELF vmcore".
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Format string `json:"format,omitempty"`
	// encryption is age, or empty for a dump in clear.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Encryption string `json:"encryption,omitempty"`
	// sizeBytes on the target, from its first byte on. Of a split dump: of all parts together.
	// +optional
	SizeBytes int64 `json:"sizeBytes,omitempty"`
	// sha256 of these bytes, read back from the target, in hex. Of a stream: of what the receiver has confirmed. Of a split
	// dump it is empty: each of the parts has its own.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	SHA256 string `json:"sha256,omitempty"`
	// freezeMicroseconds is the longest time that any CPU was held.
	// +optional
	FreezeMicroseconds int64 `json:"freezeMicroseconds,omitempty"`
	// frozenAt is the instant of the memory image.
	// +optional
	FrozenAt *metav1.MicroTime `json:"frozenAt,omitempty"`
	// pagesDumped are in the dump.
	// +optional
	PagesDumped int64 `json:"pagesDumped"`
	// pagesLost could not be kept and are left out of the dump.
	// +optional
	PagesLost int64 `json:"pagesLost"`
	// pagesUncovered are in the dump but can be written through mappings that are not protected,
	// so they may not be from the one instant.
	// +optional
	PagesUncovered int64 `json:"pagesUncovered"`
	// faults that the session took while memory was frozen, each a write to a page that was not saved yet.
	// +optional
	Faults int64 `json:"faults,omitempty"`
	// reserve is what the session needed of its reserve.
	// +optional
	Reserve *ReserveUse `json:"reserve,omitempty"`
	// steps of the dump in their order.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=16
	Steps []StepDuration `json:"steps,omitempty"`
	// pagesByClass of all RAM, as of the stop.
	// +optional
	// +listType=map
	// +listMapKey=class
	// +kubebuilder:validation:MaxItems=16
	PagesByClass []PageClassCount `json:"pagesByClass,omitempty"`
	// device identifies what holds the dump: a block device, a file in the volume, an object's URL, or a receiver. Of a split
	// dump: the beginning of a list of all; each of the parts has its own.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Device string `json:"device,omitempty"`
	// parts of a dump that was split among several claims. All of them are needed to read it.
	// +optional
	// +listType=map
	// +listMapKey=claimName
	// +kubebuilder:validation:MaxItems=16
	Parts []PartResult `json:"parts,omitempty"`
}

// LiveDumpStatus is what was seen. Once Succeeded is True or False it does not change any more. That nobody takes it away whole
// is a rule of LiveDump, for the rules of a status are not asked where there is none.
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.conditions) || !oldSelf.conditions.exists(c, c.type == 'Succeeded' && c.status != 'Unknown') || self == oldSelf",message="the LiveDump has ended; its status does not change any more"
type LiveDumpStatus struct {
	// conditions: Accepted, TargetReady, AgentReady, ModuleLoaded, Captured, Succeeded.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// observedGeneration of the spec that the controller has seen.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// placeInLine counts from 1, the next one, while Accepted has the reason WaitingInLine. Places
	// behind the tenth are brought up to date only when they have halved.
	// +optional
	// +kubebuilder:validation:Minimum=1
	PlaceInLine int32 `json:"placeInLine,omitempty"`
	// startTime is when the dump was accepted.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`
	// completionTime is when it ended.
	// +optional
	CompletionTime *metav1.Time `json:"completionTime,omitempty"`
	// node as it was at acceptance.
	// +optional
	Node NodeIdentity `json:"node,omitzero"`
	// target as the controller found it.
	// +optional
	Target TargetStatus `json:"target,omitzero"`
	// session is the UUID of the session in the kernel; it is also in the module's log lines.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Session string `json:"session,omitempty"`
	// progress of the running dump.
	// +optional
	Progress Progress `json:"progress,omitzero"`
	// result of the finished dump.
	// +optional
	Result *Result `json:"result,omitempty"`
}

// LiveDump is one consistent image of the memory of one node's running kernel.
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.status) || has(self.status)",message="the status of a LiveDump cannot be taken away"
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=ld,categories=livedump
// +kubebuilder:selectablefield:JSONPath=".spec.nodeName"
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.conditions[?(@.type=="Succeeded")].reason`
// +kubebuilder:printcolumn:name="Progress",type=integer,JSONPath=`.status.progress.percent`
// +kubebuilder:printcolumn:name="Size",type=integer,JSONPath=`.status.result.sizeBytes`
// +kubebuilder:printcolumn:name="Freeze(us)",type=integer,JSONPath=`.status.result.freezeMicroseconds`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Succeeded")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type LiveDump struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitzero"`

	// spec is what is asked for.
	// +required
	Spec LiveDumpSpec `json:"spec,omitzero"`
	// status is what was seen.
	// +optional
	Status LiveDumpStatus `json:"status,omitzero"`
}

// LiveDumpList is a list of LiveDumps.
// +kubebuilder:object:root=true
type LiveDumpList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`
	Items           []LiveDump `json:"items"`
}
