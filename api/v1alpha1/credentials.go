// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// CredentialsVolume is the name of the holder's volume with the credentials of an object store.
const CredentialsVolume = "credentials"

// Keys of the Secret that spec.target.objectStorage.credentialsSecretName names.
const (
	AccessKeyID     = "accessKeyID"
	SecretAccessKey = "secretAccessKey"
	SessionToken    = "sessionToken" // only for temporary credentials
	CACertificate   = "ca.crt"       // only for a store whose certificate no public authority has issued
)
