// std::thread, and what synchronises threads.
#include "expect.h"
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <future>
#include <mutex>
#include <numeric>
#include <shared_mutex>
#include <thread>
#include <vector>

static std::atomic<int> destroyed = 0;
struct Local {
    int value = 1;
    ~Local() { destroyed++; }
};
static thread_local Local local;

int main() {
    std::mutex mutex;
    std::condition_variable ready;
    int turn = 0;
    std::vector<int> order;
    std::vector<std::thread> threads;
    for (int me = 0; me < 4; me++)
        threads.emplace_back([&, me] {
            local.value += me;
            std::unique_lock lock(mutex);
            ready.wait(lock, [&] { return turn == me; });
            order.push_back(local.value);
            turn++;
            ready.notify_all();
        });
    for (auto &thread : threads) thread.join();
    EXPECT((order == std::vector{1, 2, 3, 4}) && destroyed == 4);

    auto sum = std::async(std::launch::async, [] {
        std::vector<long> numbers(1000);
        std::iota(numbers.begin(), numbers.end(), 1);
        return std::accumulate(numbers.begin(), numbers.end(), 0l);
    });
    EXPECT(sum.get() == 500500);

    std::once_flag once;
    int calls = 0;
    for (int i = 0; i < 3; i++) std::call_once(once, [&] { calls++; });
    EXPECT(calls == 1);

    std::shared_mutex shared;
    std::shared_lock first(shared), second(shared);
    EXPECT(!std::unique_lock(shared, std::try_to_lock));

    // libc++ waits on an atomic by the kernel's futex.
    std::atomic<int> flag = 0;
    std::thread waker([&] { flag = 1; flag.notify_one(); });
    flag.wait(0);
    waker.join();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));

    puts("threads took turns");
}
