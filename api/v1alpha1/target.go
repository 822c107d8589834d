// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Values of status.target.volumeMode, those of the claim.
const (
	VolumeModeBlock      = "Block"
	VolumeModeFilesystem = "Filesystem"
)

// Claims are the claims that the dump goes to: one, several that it is split among, or none for a target of another kind.
func (t *Target) Claims() []PersistentVolumeClaimTarget {
	if t.PersistentVolumeClaim != nil {
		return []PersistentVolumeClaimTarget{*t.PersistentVolumeClaim}
	}
	return t.PersistentVolumeClaims
}

// Split says whether the dump is split among several claims.
func (t *Target) Split() bool { return len(t.PersistentVolumeClaims) > 0 }

// OfClaim is what was found for one of the claims of the target; found is false if nothing is known of it yet.
func (s *TargetStatus) OfClaim(target *Target, name string) (c ClaimStatus, found bool) {
	if !target.Split() {
		return ClaimStatus{ClaimName: name, PersistentVolumeName: s.PersistentVolumeName, CapacityBytes: s.CapacityBytes,
			VolumeMode: s.VolumeMode, LocalPath: s.LocalPath}, s.PersistentVolumeName != ""
	}
	for _, c := range s.Claims {
		if c.ClaimName == name {
			return c, true
		}
	}
	return ClaimStatus{}, false
}

// FileInVolume is where the dump, or its part, is within a claim with volumeMode Filesystem.
func (d *LiveDump) FileInVolume(claim PersistentVolumeClaimTarget) string {
	if claim.Path != "" {
		return claim.Path
	}
	name := d.Name
	if d.Spec.Target.Split() {
		// The list of claims has no order, so a part has no number.
		name += "." + claim.ClaimName
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
	return name + suffix
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
