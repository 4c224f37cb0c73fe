#!/usr/bin/env bash
# Creates the files that Dask needs for TLS in a new, private folder: ca.pem, cert.pem and key.pem.
#
#   launch/make_certificates.sh DIR [DAYS]     # valid for DAYS days (default: 7)
#
# Only holders of the three files can join the cluster. The private key of the authority is deleted.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
begin "$0" "$@"

umask 077
mkdir "$1"
cd "$1"
days=${2:-7}
cat >openssl.cnf <<'END'
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[member]
basicConstraints = critical, CA:FALSE
authorityKeyIdentifier = keyid
END
key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -config openssl.cnf)
{
    openssl req -x509 "${key[@]}" -extensions authority -days "$days" -subj "/CN=pbd cluster" -keyout ca-key.pem -out ca.pem
    openssl req "${key[@]}" -subj "/CN=pbd" -keyout key.pem -out request.pem
    openssl x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days "$days" \
        -extfile openssl.cnf -extensions member -out cert.pem
} >openssl.log 2>&1 || { cat openssl.log >&2 && exit 1; }
rm -f ca-key.pem ca.srl request.pem openssl.cnf openssl.log
