#!/busybox sh
# First process of a guest. ttyS0 has the kernel's messages, ttyS1 is the command's.
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sysfs /sys
/busybox mount -t devtmpfs devtmpfs /dev
/busybox mkdir -p /dev/pts /dev/shm /usr/bin /usr/sbin
/busybox mount -t devpts -o ptmxmode=0666 devpts /dev/pts
/busybox mount -t tmpfs tmpfs /dev/shm
# Not over something that was brought along.
[ -n "$(/busybox ls -A /tmp)" ] || /busybox mount -t tmpfs tmpfs /tmp
/busybox mount -t tmpfs tmpfs /run
/busybox mount -t debugfs debugfs /sys/kernel/debug
/busybox mount -t tracefs tracefs /sys/kernel/tracing
/busybox mount -t bpf bpf /sys/fs/bpf
/busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
/busybox chmod 1777 /tmp /dev/shm
/busybox ln -sf /proc/self/fd /dev/fd
/busybox ln -sf /proc/self/fd/0 /dev/stdin
/busybox ln -sf /proc/self/fd/1 /dev/stdout
/busybox ln -sf /proc/self/fd/2 /dev/stderr
# What was brought along stays: only names that are free.
for applet in $(/busybox --list); do
    [ -e "/usr/bin/$applet" ] || /busybox ln -s /busybox "/usr/bin/$applet"
done
[ -e /bin/sh ] || /busybox ln -s /busybox /bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
hostname guest
ip link set lo up
for module in @MODULES@; do
    insmod "$module"
done
stty -F /dev/ttyS1 raw -echo
setsid sh /command </dev/ttyS1 >/dev/ttyS1 2>&1
code=$?
# The output is out before the machine is off.
stty -F /dev/ttyS1 raw -echo drain 2>/dev/null
echo "<0>@TOKEN@ $code" >/dev/kmsg
sync
poweroff -f
