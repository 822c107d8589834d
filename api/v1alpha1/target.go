// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Values of status.target.volumeMode, those of the claim.
const (
	VolumeModeBlock      = "Block"
	VolumeModeFilesystem = "Filesystem"
)

// FileInVolume is where the dump is within a claim with volumeMode Filesystem. It is "" for a target that is no claim.
func (d *LiveDump) FileInVolume() string {
	claim := d.Spec.Target.PersistentVolumeClaim
	if claim == nil {
		return ""
	}
	if claim.Path != "" {
		return claim.Path
	}
	suffix := ".kdump"
	switch d.Spec.Format {
	case FormatELF:
		suffix = ".elf"
	case FormatFlattened:
		suffix = ".flat"
	}
	if d.Spec.Encryption != nil {
		suffix += ".age"
	}
	return d.Name + suffix
}

// ObjectKey is the name of the object that holds the dump. It is "" for a target that is no object storage. The UID makes it
// one that no other LiveDump has, so nothing is overwritten.
func (d *LiveDump) ObjectKey() string {
	storage := d.Spec.Target.ObjectStorage
	if storage == nil {
		return ""
	}
	suffix := ".flat"
	if d.Spec.Encryption != nil {
		suffix += ".age"
	}
	return storage.KeyPrefix + d.Name + "-" + string(d.UID) + suffix
}
