# minisvc as an image: the one static binary, on a base with a shell and what it takes to look around.
# Without a registry, give bases of your own: --build-arg BUILDER_IMAGE=... --build-arg RUNTIME_IMAGE=...
ARG BUILDER_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${BUILDER_IMAGE} AS builder
WORKDIR /src
COPY . .
# A builder image that has the binary at /minisvc already needs no toolchain.
RUN test -x /minisvc || { cargo build --release --locked && cp target/*/release/minisvc /minisvc; }

FROM ${RUNTIME_IMAGE}
# A base that has them already needs no package mirror.
RUN { command -v curl && command -v ip && command -v nft; } || { \
        apt-get update && apt-get install --yes --no-install-recommends curl iproute2 nftables && \
        rm -rf /var/lib/apt/lists/*; \
    }
COPY --from=builder /minisvc /usr/local/bin/minisvc
CMD ["minisvc", "--help"]
