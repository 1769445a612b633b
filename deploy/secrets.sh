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

# know SERVICE CALLER...: by which the service recognises those that call it, and cannot call as they do
know() {
  service=$1
  shift
  for caller; do
    give "$service" "service-token-$caller.sha256" "$(make "service-token-$caller" | sha256sum | cut -d ' ' -f 1)"
    # An earlier version gave the token itself.
    [ "$caller" = "$service" ] || rm -f "$out/$service/service-token-$caller"
  done
}

for service in edge authsvc accounting inference operator; do make "service-token-$service" >/dev/null; done
redis=$(make redis-password)

# authsvc and accounting have a database and a user each; the first start of PostgreSQL makes them (deploy/postgres-init.sql).
# An earlier version's had one user, whose password the URLs that were given then still hold.
give postgres postgres-password "$(make postgres-password)"
for service in authsvc accounting; do
  password=$(make "postgres-password-$service")
  give postgres "$service-password" "$password"
  give "$service" database-url "postgresql+asyncpg://$service:$password@postgres:5432/$service"
done
give redis redis.conf "bind * -::*
requirepass $redis
appendonly yes
appendfsync everysec
save \"\"
maxmemory-policy noeviction"

know authsvc edge accounting inference operator
# `naru bootstrap` runs there.
give authsvc service-token-operator "$(make service-token-operator)"
give authsvc pepper "$(make pepper)"

know accounting edge inference operator
give accounting service-token-accounting "$(make service-token-accounting)"
give accounting outcome-key "$(make outcome-key)"
give accounting redis-url "redis://:$redis@redis:6379/0"

know inference edge operator
give inference service-token-inference "$(make service-token-inference)"
give edge service-token-edge "$(make service-token-edge)"
