// SPDX-License-Identifier: Apache-2.0

// Package zstdpage compresses single pages of memory to zstd frames.
//
// Encoders for streams spend most of their time on a page of 4 KiB with what pays off only on longer
// input: tables of many KiB that have to be cleared, statistics of three kinds, histories. This one
// knows that its input is one page, keeps all of its state within the first level cache, and writes one
// single-segment frame with the content size and without a checksum, that every zstd decoder reads:
// the format is that of RFC 8878.
package zstdpage
