// SPDX-License-Identifier: Apache-2.0

// Package object writes a dump to an object store that speaks S3.
//
// The object is uploaded in parts. A part is kept in memory until the store has acknowledged it, for the dump can be read
// only once; as long as a part fails in a way that may pass (the store restarts, a connection breaks) it is sent again.
// The object appears when all parts are there and Commit completes the upload, and not before. Given up, the upload is aborted,
// and the store keeps nothing of it.
//
// The store compares each part with its SHA-256, which is part of the signed request, and what lies there in the end is read
// back, as far as the credentials allow that.
package object
