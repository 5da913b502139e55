#!/bin/sh
# The first process of the full form's node. It stands in a mount and a process namespace of its own: when it is killed,
# containerd, kubelet and every container go with it, and so do all mounts made here.
set -eu
dir=$1

# kubelet and containers pass mounts on to each other, but none of them to the machine.
mount --make-rshared /

# A fresh /run, and layers over the other folders that servers and hostPath volumes write to.
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/leasehold /run/secrets-store-csi-providers
chmod 700 /run/leasehold
for folder in etc var/lib var/log; do
	mkdir -p "/run/layer/$folder" "/run/overlay/$folder"
	mount -t overlay overlay -o "lowerdir=/$folder,upperdir=/run/layer/$folder,workdir=/run/overlay/$folder" "/$folder"
done
mkdir -p /var/lib/kubelet /etc/kubernetes
mount --bind "$dir/kubelet" /var/lib/kubelet

# kubelet sets these for the whole machine. It is shown that they are set already, and leaves them alone.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
	kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
	file=/run/sysctl/${setting%=*}
	mkdir -p "${file%/*}"
	echo "${setting#*=}" >"$file"
	mount --bind "$file" "/proc/sys/${setting%=*}"
done

touch "$dir/node-ready"

# Waiting collects the ended processes that nobody else waits for.
while :; do
	sleep 3600 &
	wait $!
done
