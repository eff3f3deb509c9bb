#!/usr/bin/env bash
# Prints the digest of a directory tree as srp computes it (docs/store-layout.md), without srp.
#
#     tests/tree-digest.sh DIR
#
# Needs bash 4.4, find (GNU), sort and b3sum. Names may hold any byte that a file system allows.
set -euo pipefail
export LC_ALL=C # names are bytes, and sorted as bytes

fail() {
    printf 'tree-digest: %s\n' "$1" >&2
    exit 1
}

[ $# = 1 ] || fail 'one argument is needed: the directory'
unset CDPATH
cd -P -- "$1"

# Every path but the top, sorted: so the entries of each directory are met in the order of their names.
mapfile -d '' -t paths < <(find . -mindepth 1 -print0 | sort -z)
wait $! || fail 'the tree cannot be listed'

# What each is: kind (f, d, l), size in bytes, mode in octal, and where it leads if it is a link.
declare -A kinds sizes modes targets digests children
while IFS= read -rd '' path && IFS= read -rd '' kind && IFS= read -rd '' size \
    && IFS= read -rd '' mode && IFS= read -rd '' target; do
    kinds[$path]=$kind sizes[$path]=$size modes[$path]=$mode targets[$path]=$target
done < <(find . -mindepth 1 -printf '%p\0%y\0%s\0%m\0%l\0')
wait $! || fail 'the tree cannot be listed'

# The files' digests: plain BLAKE3, many files at a time.
files=()
for ((i = 0; i < ${#paths[@]}; i++)); do
    path=${paths[i]}
    children[${path%/*}]+=" $i"
    case ${kinds[$path]-gone} in
        f) files+=("$path") ;;
        d | l) ;;
        *) fail "$path is neither a file, a directory nor a symbolic link" ;;
    esac
done
for ((i = 0; i < ${#files[@]}; i += 100)); do
    some=("${files[@]:i:100}")
    sums=$(b3sum --no-names "${some[@]}") || fail 'a file cannot be read'
    mapfile -t sums <<<"$sums"
    [ "${#sums[@]}" = "${#some[@]}" ] || fail 'b3sum printed something else than one digest a file'
    for ((j = 0; j < ${#some[@]}; j++)); do
        digests[${some[j]}]=${sums[j]}
    done
done

# One directory as it is hashed: for each entry four fields, each ended by NUL.
encode() {
    local i path
    for i in ${children[$1]-}; do
        path=${paths[i]}
        case ${kinds[$path]} in
            d) printf '%s\0' d '' "${digests[$path]}" "${path##*/}" ;;
            l) printf '%s\0' l '' "${targets[$path]}" "${path##*/}" ;;
            f)
                kind=f
                ((8#${modes[$path]} & 8#100)) && kind=x # the owner's x
                printf '%s\0' "$kind" "${sizes[$path]}" "${digests[$path]}" "${path##*/}"
                ;;
        esac
    done
}

# Directories, the deepest first, the top last.
while IFS= read -rd '' path; do
    digests[$path]=$(encode "$path" | b3sum --no-names --derive-key 'srp directory v1')
done < <(find . -depth -type d -print0)
printf '%s\n' "${digests[.]}"
