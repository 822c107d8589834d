// SPDX-License-Identifier: Apache-2.0

package cluster

// HostFromGuest is the machine's loopback as the node sees it: where a server outside of the cluster is reached.
const HostFromGuest = hostFromGuest

// Certificate issues one for a server outside of the cluster, and gives the authority's in PEM.
func (c *Cluster) Certificate(name string) (certFile, keyFile string, ca []byte, err error) {
	id, err := c.pki.issue(name, name, nil, hostFromGuest)
	return id.certFile, id.keyFile, c.pki.pem, err
}
