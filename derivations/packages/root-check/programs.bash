# Runs every program of the root once, and looks at every file for what must not be there. It is sourced by
# a build whose root is the stage and nothing else; $1 is the target's architecture as readelf calls it.
machine=$1
failures=0

fail() {
    echo "FAILED: $*"
    failures=$((failures + 1))
}

# What a program is asked so that it answers and ends well; most tell their version.
question() {
    case $1 in
        false | '[' | test) echo none ;;
        lld) echo none ;; # It wants to be called by the name of a linker.
        lld-link) echo --version ;;
        less | lesskey | lessecho) echo --version ;;
        clear | infocmp | infotocap | captoinfo | reset | tabs | tic | toe | tput | tset) echo -V ;;
        *) echo --version ;;
    esac
}

programs=0
for program in /usr/bin/* /usr/sbin/*; do
    [ -x "$program" ] && [ ! -d "$program" ] || continue
    name=${program##*/}
    asked=$(question "$name")
    programs=$((programs + 1))
    if [ "$asked" = none ]; then
        "$program" > answer 2>&1 < /dev/null && code=0 || code=$?
        [ $code -le 2 ] || fail "$name ended with $code: $(head -n 3 answer)"
    elif ! "$program" $asked > answer 2>&1 < /dev/null; then
        fail "$name $asked: $(head -n 3 answer)"
    fi
done
echo "$programs programs ran, each in its own words: $(bash --version | head -n 1)"

# Objects in archives count too: readelf names the machine of each.
files=0
while IFS= read -r -d '' file; do
    IFS= read -rN 8 magic < "$file" 2> /dev/null || true
    case $magic in
        $'\x7fELF'* | '!<arch>'*) ;;
        *) continue ;;
    esac
    files=$((files + 1))
    llvm-readelf -h "$file" > header 2>&1 || fail "$file can't be read: $(head -n 1 header)"
    if grep Machine: header | grep -qv "Machine: *$machine\$"; then
        fail "$file is for another machine: $(grep Machine: header | sort -u)"
    fi
    llvm-readelf -dl -p .comment "$file" > needs 2> /dev/null || true
    if grep -qE 'ld-linux|libc\.so\.6|libgcc_s|libstdc\+\+' needs; then
        fail "$file needs glibc or GCC: $(grep -E 'ld-linux|NEEDED' needs)"
    fi
    if grep -qE '(clang|LLD|GCC:).* [0-9]+\.[0-9]' needs; then
        fail "$file names what made it: $(grep -E '(clang|LLD|GCC:).* [0-9]' needs)"
    fi
done < <(find / -xdev \( -path /proc -o -path /dev -o -path /tmp -o -path /srp \) -prune -o -type f -print0 2> /dev/null)
echo "$files ELF files and archives, all for $machine; none needs glibc, or names the compiler that made it"

[ $failures = 0 ] || { echo "$failures failures"; exit 1; }
