#!/bin/sh
# Lays out all that an image needs to run one binary: rootfs.sh BINARY FOLDER. It becomes /app/NAME, beside the
# libraries that it loads, the certificates of the public authorities, and a user without rights.
set -eu
binary=$1 root=$2
mkdir -p "$root/app" "$root/etc/ssl/certs" "$root/tmp"
chmod 1777 "$root/tmp"
cp "$binary" "$root/app/"
for library in $(ldd "$binary" | grep -o '/[^ ]*'); do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
done
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
echo 'nonroot:x:65532:65532::/tmp:/sbin/nologin' > "$root/etc/passwd"
echo 'nonroot:x:65532:' > "$root/etc/group"
