// std::filesystem and file streams.
#include "expect.h"
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>

namespace fs = std::filesystem;

int main() {
    char name[] = "/tmp/check-XXXXXX";
    EXPECT(mkdtemp(name));
    fs::path root = name;
    EXPECT(fs::create_directories(root / "a/b/c") && fs::is_directory(root / "a/b"));
    std::ofstream(root / "a/file") << "content\n";
    EXPECT(fs::file_size(root / "a/file") == 8);
    fs::create_symlink("file", root / "a/link");
    EXPECT(fs::read_symlink(root / "a/link") == "file" && fs::equivalent(root / "a/link", root / "a/file"));
    fs::permissions(root / "a/file", fs::perms::owner_read);
    EXPECT(fs::status(root / "a/file").permissions() == fs::perms::owner_read);
    fs::copy(root / "a", root / "copy", fs::copy_options::recursive | fs::copy_options::copy_symlinks);

    std::set<std::string> found;
    for (auto &entry : fs::recursive_directory_iterator(root / "copy"))
        found.insert(entry.path().lexically_relative(root / "copy"));
    EXPECT((found == std::set<std::string>{"b", "b/c", "file", "link"}));

    std::ifstream in(root / "copy/file");
    EXPECT(std::string(std::istreambuf_iterator<char>(in), {}) == "content\n");
    std::error_code error;
    EXPECT(!fs::exists(root / "none", error) && !fs::remove(root / "none", error));
    try {
        fs::copy_file(root / "none", root / "other");
        return 1;
    } catch (const fs::filesystem_error &missing) {
        EXPECT(missing.code() == std::errc::no_such_file_or_directory);
    }
    EXPECT(fs::remove_all(root) > 5 && !fs::exists(root));
    puts("a tree was made, walked, copied and removed");
}
