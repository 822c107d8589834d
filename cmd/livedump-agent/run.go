// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
)

func run(_ []string, _ io.Writer) error { return errors.New("not yet") }
