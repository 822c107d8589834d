// SPDX-License-Identifier: Apache-2.0

package endtoend

import "context"

func (b *Bench) Demo(ctx context.Context) error     { return nil }
func (b *Bench) Failures(ctx context.Context) error { return nil }
