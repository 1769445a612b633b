#!/bin/sh
# Makes the installation's secrets, once, into one volume per service: each gets those it needs and no others.
# Nothing is ever replaced: run it as often as you like.
set -eu
umask 022
out=${1:-/secrets}

random() { od -An -tx1 -N32 /dev/urandom | tr -d ' \n'; }

# make NAME: the secret of that name, kept in a volume that no service mounts
make() {
  mkdir -p "$out/all"
  [ -s "$out/all/$1" ] || random >"$out/all/$1"
  cat "$out/all/$1"
}

# give SERVICE FILE CONTENT: a file in the service's volume; only that service's container sees it
give() {
  mkdir -p "$out/$1"
  [ -s "$out/$1/$2" ] || printf '%s\n' "$3" >"$out/$1/$2"
  chmod 0444 "$out/$1/$2"
}

for service in edge authsvc accounting inference operator; do make "service-token-$service" >/dev/null; done
postgres=$(make postgres-password)
redis=$(make redis-password)

# authsvc and accounting have a database each; the first start of PostgreSQL makes them (deploy/postgres-init.sql).
give postgres postgres-password "$postgres"
give redis redis.conf "bind * -::*
requirepass $redis
appendonly yes
appendfsync everysec
save \"\"
maxmemory-policy noeviction"

for caller in edge accounting inference operator; do give authsvc "service-token-$caller" "$(make "service-token-$caller")"; done
give authsvc pepper "$(make pepper)"
give authsvc database-url "postgresql+asyncpg://naru:$postgres@postgres:5432/authsvc"

for caller in accounting edge inference operator; do give accounting "service-token-$caller" "$(make "service-token-$caller")"; done
give accounting database-url "postgresql+asyncpg://naru:$postgres@postgres:5432/accounting"
give accounting outcome-key "$(make outcome-key)"
give accounting redis-url "redis://:$redis@redis:6379/0"

for caller in inference edge operator; do give inference "service-token-$caller" "$(make "service-token-$caller")"; done
give edge service-token-edge "$(make service-token-edge)"
