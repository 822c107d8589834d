// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"fmt"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"livedump.io/api/v1alpha1"
)

func findCondition(dump *v1alpha1.LiveDump, conditionType string) *metav1.Condition {
	return meta.FindStatusCondition(dump.Status.Conditions, conditionType)
}

// explain makes ErrForbidden of the API server's refusals.
func explain(doing string, err error) error {
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		return fmt.Errorf("%s: %w: %w", doing, ErrForbidden, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// rights that fetching takes, besides those on LiveDumps.
var rights = []authorizationv1.ResourceAttributes{
	{Verb: "create", Resource: "pods"},
	{Verb: "get", Resource: "pods"},
	{Verb: "delete", Resource: "pods"},
	{Verb: "create", Resource: "pods", Subresource: "exec"},
}

// mayFetch asks beforehand, so that nothing is begun that cannot be ended.
func (f *Fetcher) mayFetch(ctx context.Context, namespace string) error {
	var missing []string
	for _, r := range rights {
		r.Namespace = namespace
		review, err := f.Kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx,
			&authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &r}}, metav1.CreateOptions{})
		if err != nil {
			return explain("asking what you may do", err)
		}
		if !review.Status.Allowed {
			what := r.Resource
			if r.Subresource != "" {
				what += "/" + r.Subresource
			}
			missing = append(missing, r.Verb+" "+what)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: fetching a dump takes rights in namespace %s that you do not have: %s", ErrForbidden, namespace, strings.Join(missing, ", "))
	}
	return nil
}
