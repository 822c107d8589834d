# SPDX-License-Identifier: Apache-2.0
#
# Two images; the final stages hold nothing but static binaries (and the modules):
#   docker build --target controller -t livedump-controller:TAG .
#   docker build --target agent      -t livedump-agent:TAG .
#
# The agent's image takes the kernel modules that `make kmod` left in bin/kmod, one
# directory for each kernel release. Build them for the kernels of your nodes first.

ARG GO_VERSION=1.26

FROM golang:${GO_VERSION} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY api api
COPY cmd cmd
COPY controllers controllers
COPY internal internal
COPY node-agent node-agent
ARG VERSION=dev
# The one architecture that the module supports; the holder runs the controller's image on the same nodes.
ENV CGO_ENABLED=0 GOOS=linux GOARCH=amd64
RUN go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/ ./cmd/livedump-controller ./cmd/livedump-agent

FROM scratch AS controller
COPY --from=build /out/livedump-controller /livedump-controller
USER 65532:65532
ENTRYPOINT ["/livedump-controller"]

FROM scratch AS agent
# Object stores are reached with public certificates, unless their Secret names others.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/livedump-agent /livedump-agent
COPY bin/kmod/ /opt/lib/modules/
# Loading a module and opening block devices takes root and a privileged container.
USER 0:0
ENTRYPOINT ["/livedump-agent"]
