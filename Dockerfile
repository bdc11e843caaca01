# The image of Leasehold: one static binary and the public certificate authorities.
#   docker build -t leasehold .
# tests/cluster/node/leasehold-image.sh makes the same one without Docker.
FROM rust:1-bookworm AS build
RUN apt-get update \
  && apt-get install --yes --no-install-recommends cmake musl-tools ca-certificates \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
COPY src ./src
COPY docs/troubleshooting.md ./docs/
COPY benches ./benches
COPY tests ./tests
RUN target="$(uname -m)-unknown-linux-musl" \
  && rustup target add "$target" \
  && cargo build --release --locked --bin leasehold --target "$target" \
  && install -D "target/$target/release/leasehold" /image/leasehold \
  && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt

FROM scratch
COPY --from=build /image /
USER 65532:65532
ENTRYPOINT ["/leasehold"]
