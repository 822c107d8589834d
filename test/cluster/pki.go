// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// certificateLife is longer than any run and short enough for a leaked key to be worthless.
const certificateLife = 48 * time.Hour

// authority signs the certificates of one cluster. It lives as long as the process.
type authority struct {
	dir  string
	key  crypto.Signer
	cert *x509.Certificate
	pem  []byte
}

// identity is a key and its certificate, in PEM and as files.
type identity struct {
	certPEM, keyPEM   []byte
	certFile, keyFile string
}

func newAuthority(dir string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "livedump-test-ca"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(certificateLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &authority{dir: dir, key: key, cert: cert, pem: encodePEM("CERTIFICATE", der)}
	return a, os.WriteFile(a.certFile(), a.pem, 0o644)
}

func (a *authority) certFile() string { return filepath.Join(a.dir, "ca.crt") }

// issue makes a certificate that is good for both ends of TLS. The name and
// groups are what the API server takes for user and groups; hosts are names and
// addresses at which a server is reached.
func (a *authority) issue(file, name string, groups []string, hosts ...string) (identity, error) {
	fail := func(err error) (identity, error) { return identity{}, fmt.Errorf("certificate of %s: %w", name, err) }
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return fail(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name, Organization: groups},
		NotBefore:    a.cert.NotBefore,
		NotAfter:     a.cert.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fail(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fail(err)
	}
	id := identity{
		certPEM: encodePEM("CERTIFICATE", der), keyPEM: encodePEM("PRIVATE KEY", keyDER),
		certFile: filepath.Join(a.dir, file+".crt"), keyFile: filepath.Join(a.dir, file+".key"),
	}
	if err := os.WriteFile(id.certFile, id.certPEM, 0o644); err != nil {
		return fail(err)
	}
	if err := os.WriteFile(id.keyFile, id.keyPEM, 0o600); err != nil {
		return fail(err)
	}
	return id, nil
}

// kubeconfig issues a certificate and writes a kubeconfig that has all it needs
// inside, so that it can be copied to another machine.
func (a *authority) kubeconfig(file, server, name string, groups ...string) (path string, err error) {
	id, err := a.issue(file, name, groups)
	if err != nil {
		return "", err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["livedump"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: a.pem}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: id.certPEM, ClientKeyData: id.keyPEM}
	config.Contexts["livedump"] = &clientcmdapi.Context{Cluster: "livedump", AuthInfo: name}
	config.CurrentContext = "livedump"
	path = filepath.Join(a.dir, file+".kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return "", fmt.Errorf("kubeconfig of %s: %w", name, err)
	}
	return path, nil
}

// serviceAccountKey writes the pair that signs and checks service accounts' tokens.
func serviceAccountKey(dir string) (private, public string, err error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", "", err
	}
	publicDER, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "", "", err
	}
	private, public = filepath.Join(dir, "sa.key"), filepath.Join(dir, "sa.pub")
	if err := os.WriteFile(private, encodePEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)), 0o600); err != nil {
		return "", "", err
	}
	return private, public, os.WriteFile(public, encodePEM("PUBLIC KEY", publicDER), 0o644)
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
