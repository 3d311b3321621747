#!/usr/bin/env bash
# A Ray cluster of two hosts on this machine, and a third host for its client.
#
#   up            start it; prints how to use it
#   down          end it; nothing is left
#   cut [HOST]    a host loses its link: packets are dropped, nobody is told
#   heal [HOST]   the link is there again, at full speed
#   slow MBIT     the link of `node` has this rate, in Mbit/s
#   lose          all processes of the second host are killed at once
#   return        the second host starts again
#   on HOST COMMAND...      run a command on `head` or `node`, with the cluster's token
#   client COMMAND...       run a command on the third host, with the cluster's token
#   hosts         `namespaces`, or `loopback` where namespaces are not allowed
#
# HOST is head, node (the default) or client.
#
# Each host has its own network, processes, host name, /tmp/ray and /dev/shm, but files are shared.
# It needs root, Linux and iproute2. Without them the two nodes run on 127.0.0.1 and 127.0.0.2, and
# cut, heal and slow say that they cannot.
set -euo pipefail

STATE=/tmp/raysft-two-host
HEAD=10.77.0.1 NODE=10.77.0.2 CLIENT=10.77.0.3
NETWORKS=(raysft-switch raysft-head raysft-node raysft-client)

die() {
    echo "two-host.sh: $1" >&2
    exit 1
}

allowed() {
    [ "$(id -u)" = 0 ] && command -v ip >/dev/null && unshare --net --mount --uts --pid --fork true 2>/dev/null &&
        ip netns add raysft-try 2>/dev/null && ip netns del raysft-try
}

isolated() {
    [ "$(cat "$STATE/hosts" 2>/dev/null)" = namespaces ]
}

address_of() {
    if isolated; then
        case $1 in head) echo $HEAD ;; node) echo $NODE ;; *) echo $CLIENT ;; esac
    else
        case $1 in head) echo 127.0.0.1 ;; *) echo 127.0.0.2 ;; esac
    fi
}

# One switch; each host hangs on it by a cable of its own, whose end on the host is eth0.
plug_in() {
    for network in "${NETWORKS[@]}"; do
        ip netns add "$network"
        ip -n "$network" link set lo up
    done
    ip -n raysft-switch link add switch type bridge
    ip -n raysft-switch link set switch up
    for host in head node client; do
        ip link add eth0 netns "raysft-$host" type veth peer name "$host" netns raysft-switch
        ip -n "raysft-$host" addr add "$(address_of $host)/24" dev eth0
        ip -n "raysft-$host" link set eth0 up
        ip -n raysft-switch link set "$host" master switch up
    done
}

# The environment of every Ray process and of the client: token, and a lost node noticed within 3 s.
settings() {
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$STATE/token RAY_USAGE_STATS_ENABLED=0
    export RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=1000
    export RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=3
    unset RAY_ADDRESS RAY_AUTH_TOKEN
}

# What makes a host of a process: runs inside it, as its first one, and starts Ray again when it ends.
host() {
    local name=$1 options=(--node-ip-address="$(address_of "$1")" --num-cpus=1 --object-store-memory=200000000)
    if isolated; then
        hostname "$name"
        mkdir -p "$STATE/$name/ray" /tmp/ray
        mount --bind "$STATE/$name/ray" /tmp/ray
        mount -t tmpfs -o size=2g tmpfs /dev/shm
        # As Debian does it, so that who looks up the host's own name finds loopback.
        printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" >"$STATE/$name/hosts"
        mount --bind "$STATE/$name/hosts" /etc/hosts
    fi
    if [ "$name" = head ]; then
        options+=(--head --port=6379 --dashboard-host="$(address_of head)" --dashboard-port=8265)
    else
        options+=(--address="$(address_of head):6379")
        # On loopback the head has taken the usual ports.
        isolated || options+=(--dashboard-agent-listen-port=0 --dashboard-agent-grpc-port=0 --metrics-export-port=0)
    fi
    while true; do
        ray start "${options[@]}" --disable-usage-stats --block || true
        sleep 1
    done
}

boot() {
    local name=$1 log=$STATE/$1.log enter=()
    isolated && enter=(ip netns exec "raysft-$name" unshare --mount --uts --pid --fork --kill-child --mount-proc)
    setsid "${enter[@]}" "$0" host "$name" >>"$log" 2>&1 </dev/null &
    echo $! >"$STATE/$name.pid"
}

# Not by its number alone: after a kill that number may be another process's.
running() {
    local pid words
    pid=$(cat "$STATE/$1.pid" 2>/dev/null) && words=$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") &&
        [[ $words == *"two-host.sh host $1"* ]]
}

# The end of a host's first process is the end of all others on it.
kill_host() {
    local pid below
    running "$1" || return 0
    pid=$(cat "$STATE/$1.pid")
    if isolated; then
        kill -KILL "$pid" 2>/dev/null || true
    else
        mapfile -t below < <(descendants "$pid")
        kill -KILL -- "-$pid" "${below[@]}" 2>/dev/null || true
    fi
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    rm -f "$STATE/$1.pid"
}

descendants() {
    local child
    for child in $(pgrep -P "$1"); do
        echo "$child"
        descendants "$child"
    done
}

enter() {
    local pid name=$1
    shift
    settings
    if ! isolated; then
        exec "$@"
    fi
    pid=$(pgrep -P "$(cat "$STATE/$name.pid")") || die "$name is not running"
    exec nsenter --target "$pid" --net --mount --uts --pid -- "$@"
}

up() {
    command -v ray >/dev/null || die "there is no ray in the PATH: activate the environment raysft is in"
    if running head || running node; then die "it is up already; end it with: $0 down"; fi
    down # What a cluster that was killed has left.
    (umask 077 && mkdir "$STATE" && python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"$STATE/token")
    chmod 711 "$STATE"
    if allowed; then
        echo namespaces >"$STATE/hosts"
        plug_in
    else
        echo loopback >"$STATE/hosts"
        echo "two-host.sh: namespaces are not allowed here (they need root): two nodes on loopback instead" >&2
    fi
    settings
    boot head
    boot node
    wait_for_nodes
    cat <<END
Two hosts are up: head $(address_of head), node $(address_of node). One CPU each. Logs are in $STATE.
  $0 client raysft train gpt2-tiny-cpu --address http://$(address_of head):8265 --set run.storage=/tmp/runs
The client's token is in $STATE/token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH).
END
}

wait_for_nodes() {
    local url alive
    url="http://$(address_of head):8265/api/v0/nodes"
    for _ in $(seq 120); do
        alive=$(in_client python3 -c "
import json, sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.stdin.read()})
nodes = json.load(urllib.request.urlopen(request, timeout=5))['data']['result']['result']
print(sum(node['state'] == 'ALIVE' for node in nodes))" "$url" <"$STATE/token" 2>/dev/null) || true
        if [ "$alive" = 2 ]; then return; fi
        sleep 0.5
    done
    die "no two nodes after a minute; see $STATE/*.log"
}

in_client() {
    local enter=()
    isolated && enter=(ip netns exec raysft-client)
    settings
    "${enter[@]}" "$@"
}

down() {
    kill_host node
    kill_host head
    for network in "${NETWORKS[@]}"; do
        ip netns del "$network" 2>/dev/null || true
    done
    rm -rf "$STATE"
}

need_link() {
    isolated || die "$1 needs hosts in network namespaces, and these are two nodes on loopback"
}

# Both ends of the second host's cable.
shape() {
    tc -n raysft-switch qdisc "$@"
    tc -n raysft-node qdisc "${@/node/eth0}"
}

[ $# -gt 0 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && exit 2; }
command=$1
shift
case $command in
up | down) "$command" ;;
host) host "$@" ;;
hosts) cat "$STATE/hosts" ;;
cut)
    need_link cut
    ip -n raysft-switch link set "${1:-node}" nomaster
    ;;
heal)
    need_link heal
    ip -n raysft-switch link set "${1:-node}" master switch
    shape del dev node root 2>/dev/null || true
    ;;
slow)
    need_link slow
    shape replace dev node root tbf rate "${1:?MBIT}mbit" burst 256kb latency 500ms
    ;;
lose) kill_host node ;;
return)
    settings
    boot node
    ;;
on) enter "$@" ;;
client)
    settings
    if isolated; then exec ip netns exec raysft-client "$@"; fi
    exec "$@"
    ;;
*) die "no command $command" ;;
esac
