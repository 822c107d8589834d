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
	return d.Name + suffix
}
