// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"livedump.io/internal/agefile"
	"livedump.io/internal/kdump"
)

// Policy says what may be on a device that is overwritten.
type Policy int

const (
	// Never accepts only an empty device.
	Never Policy = iota
	// IfEmptyOrLiveDump also accepts what livedump itself has left: a dump, or the mark of one that failed
	// or was interrupted.
	IfEmptyOrLiveDump
)

// ParsePolicy reads the name that the API uses.
func ParsePolicy(name string) (Policy, error) {
	switch name {
	case "Never":
		return Never, nil
	case "IfEmptyOrLiveDump":
		return IfEmptyOrLiveDump, nil
	}
	return Never, fmt.Errorf("overwrite policy %q: want Never or IfEmptyOrLiveDump", name)
}

func (p Policy) String() string {
	if p == IfEmptyOrLiveDump {
		return "IfEmptyOrLiveDump"
	}
	return "Never"
}

// leftBy says whether a device carries what livedump itself has left there in a session.
func leftBy(c content, session kdump.Session) bool {
	record, own, err := kdump.ReadRecord(bytes.NewReader(c.head))
	return err == nil && own && record.Session == session && session != kdump.Session{}
}

// checkContent refuses a device whose content the policy protects. What is not understood is protected.
func checkContent(c content, policy Policy, name string) error {
	record, own, err := kdump.ReadRecord(bytes.NewReader(c.head))
	if err != nil && !own {
		return fmt.Errorf("%s: %w: %w", name, ErrIO, err)
	}
	if err != nil {
		what := "it begins with a damaged record of livedump; something else may have been written over a dump"
		if errors.Is(err, kdump.ErrVersion) {
			what = "it holds the record of another version of livedump"
		}
		return refuse(ErrNotEmpty, name, "%s (%s); wipe the device if it is not needed", what, err)
	}
	ownDump := own && record.State == kdump.StateComplete
	if foreign := foreignSignatures(c, ownDump); len(foreign) > 0 {
		return refuse(ErrNotEmpty, name, "found %s; wipe the device if it is not needed", strings.Join(foreign, ", "))
	}
	if agefile.IsAge(c.head) {
		owner, own := agefile.OwnerOf(c.head)
		if !own {
			return refuse(ErrNotEmpty, name, "it holds an age file of another program; wipe the device if it is not needed")
		}
		if policy == IfEmptyOrLiveDump {
			return nil
		}
		return refuse(ErrNotEmpty, name, "it holds an encrypted dump of livedump (session %s) and the overwrite policy is %s",
			owner.Session, policy)
	}
	if own {
		if policy == IfEmptyOrLiveDump {
			return nil
		}
		return refuse(ErrNotEmpty, name, "it holds a dump of livedump (%s, session %s) and the overwrite policy is %s",
			record.State, record.Session, policy)
	}
	if !isEmpty(c) {
		return refuse(ErrNotEmpty, name, "its first %d KiB are not zero, and it is not known what they are; wipe the device if it is not needed",
			emptyHead>>10)
	}
	return nil
}
